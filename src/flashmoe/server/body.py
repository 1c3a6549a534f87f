"""A request's body: read within limits, parsed, and checked against what the API says it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from flashmoe.errors import RequestError
from flashmoe.server.settings import Limits

M = TypeVar("M", bound=BaseModel)

# A larger body is parsed beside the event loop: 100 kB take about a millisecond.
_INLINE_BYTES = 100_000


async def read_body(request: Request, kind: type[M], limits: Limits) -> M:
    """The body as a `kind`. Raises RequestError: 400 with the field concerned, 408 or 413."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _read(request, limits.body_bytes)
    except TimeoutError as error:
        told = f"the body did not arrive within {limits.body_seconds:.0f} s"
        raise RequestError(told, status=408, code="timeout") from error
    except ClientDisconnect as error:
        raise RequestError("the client went away", status=400) from error
    if len(data) < _INLINE_BYTES:
        return parse_body(data, kind, limits.depth)
    return await asyncio.to_thread(parse_body, data, kind, limits.depth)


async def _read(request: Request, most: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            told = f"the body is larger than {most} bytes"
            raise RequestError(told, status=413, code="request_too_large")
    return bytes(data)


def parse_body(data: bytes, kind: type[M], depth: int) -> M:
    """JSON text as a `kind`; nested at most `depth` deep. Raises RequestError."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise _too_deep(depth) from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON ({error})", code="invalid_json") from error
    _check_depth(value, depth)
    _check_unicode(data, value)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _first_problem(error) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_unicode(data: bytes, value: Any) -> None:
    """Refuses halves of surrogate pairs: JSON can write them, but they are no text."""
    if b"\\ud" not in data.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError("the body is not valid Unicode", code="invalid_json") from error


def _check_depth(value: Any, most: int) -> None:
    """Refuses what is nested deeper: templates and schemas are walked by recursion later."""
    level = [value]
    for _ in range(most + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise _too_deep(most)


def _too_deep(most: int) -> RequestError:
    return RequestError(f"the body is nested deeper than {most} levels", code="invalid_json")


def _first_problem(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_input=False)[0]
    param = field_name(problem["loc"])
    told = f"{param}: {problem['msg']}" if param else problem["msg"]
    return RequestError(told, param=param, code="invalid_type")


def field_name(place: tuple[int | str, ...]) -> str | None:
    """("messages", 0, "role") -> "messages[0].role"; names of alternatives are left out."""
    name = ""
    for part in place:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in _ALTERNATIVES:
            name += f".{part}" if name else part
    return name or None


# Pydantic puts the alternative of a union that it tried into the place.
_ALTERNATIVES = {"str", "int", "float", "bool", "list", "dict"}
