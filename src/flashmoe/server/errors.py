"""Errors as each API words them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import ceil
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from flashmoe.errors import (
    ContextLengthError,
    FlashMoeError,
    QueueFullError,
    RequestError,
    UsageError,
)
from flashmoe.server.wire import Json

log = logging.getLogger(__name__)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def request_error(error: FlashMoeError) -> RequestError:
    """Any of our errors as what an HTTP client is told. Server faults keep their details back."""
    match error:
        case RequestError():
            return error
        case QueueFullError():
            return RequestError(
                str(error), status=503, code="queue_full", retry_after=error.retry_after
            )
        case ContextLengthError():
            return RequestError(str(error), code="context_length_exceeded")
        case UsageError():
            return RequestError(_without_path(error), param=_param(error))
    log.error("request failed: %s", error)
    return RequestError(f"{error.what} (see the server's log)", status=500, code="engine_error")


def _param(error: UsageError) -> str | None:
    where = str(error.where or "")
    return where if where and "/" not in where else None


def _without_path(error: UsageError) -> str:
    """The message; the file it concerns is the server's own affair."""
    where = error.where if _param(error) else None
    return str(
        UsageError(error.what, where=where, expected=error.expected, got=error.got, hint=error.hint)
    )


def openai_error(error: RequestError) -> dict[str, Any]:
    """{"error": {message, type, param, code, ...}}"""
    kind = _TYPES.get(error.status, "server_error")
    named = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return {"error": named | dict(error.extra)}


def anthropic_error(error: RequestError) -> dict[str, Any]:
    """{"type": "error", "error": {type, message, ...}}"""
    kind = _TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)} | dict(error.extra)}


def ollama_error(error: RequestError) -> dict[str, Any]:
    """{"error": message, ...}"""
    return {"error": str(error)} | dict(error.extra)


def error_body(path: str, error: RequestError) -> dict[str, Any]:
    """The error in the shape of the API that `path` belongs to."""
    if path.startswith("/v1/messages"):
        return anthropic_error(error)
    return ollama_error(error) if path.startswith("/api/") else openai_error(error)


def error_response(
    path: str, error: RequestError, headers: Mapping[str, str] | None = None
) -> Json:
    """The whole answer to a refused request."""
    fields = dict(headers or {})
    if error.retry_after is not None:
        fields["retry-after"] = str(max(1, ceil(error.retry_after)))
    if error.status == 401:
        fields["www-authenticate"] = "Bearer"
    return Json(error_body(path, error), error.status, fields)


# Handlers of the application.


async def on_our_error(request: Request, error: Exception) -> Json:
    """Handler of FlashMoeError."""
    assert isinstance(error, FlashMoeError)
    return error_response(request.url.path, request_error(error))


async def on_http_error(request: Request, error: Exception) -> Json:
    """Handler of unknown paths and methods."""
    assert isinstance(error, HTTPException)
    what = {404: "no such endpoint", 405: "method not allowed"}.get(error.status_code, error.detail)
    refused = RequestError(f"{what}: {request.method} {request.url.path}", status=error.status_code)
    return error_response(request.url.path, refused, error.headers)


async def on_fault(request: Request, error: Exception) -> Json:
    """Handler of what nobody expected: our bug. Starlette logs it with its trace."""
    fault = RequestError("internal error (see the server's log)", status=500, code="internal_error")
    return error_response(request.url.path, fault)
