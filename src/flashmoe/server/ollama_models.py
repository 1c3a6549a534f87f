"""Ollama's API: GET /api/tags, /api/version, /api/ps and POST /api/show."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe import __version__
from flashmoe.errors import RequestError
from flashmoe.server.requests.ollama import ShowBody
from flashmoe.server.served import Served
from flashmoe.server.service import body_of, service_of
from flashmoe.server.wire import Json


async def version(request: Request) -> Response:
    """Our version."""
    return Json({"version": __version__})


async def tags(request: Request) -> Response:
    """The one model."""
    return Json({"models": [_model(service_of(request).model())]})


async def running(request: Request) -> Response:
    """The one model, which stays loaded."""
    served = service_of(request).model()
    extra = {"expires_at": "2318-01-01T00:00:00Z", "size_vram": 0}
    return Json({"models": [_model(served) | extra | {"context_length": served.context_length}]})


async def show(request: Request) -> Response:
    """Facts of the model. Raises RequestError 404 for another one."""
    service, body = service_of(request), await body_of(request, ShowBody)
    served, wanted = service.model(), body.model or body.name or ""
    if wanted.removesuffix(":latest") != served.name:
        told = f"there is no model {wanted!r}; this server has {served.name!r}"
        raise RequestError(told, status=404, code="model_not_found")
    facts: dict[str, Any] = {"general.architecture": _family(served)}
    facts[f"{_family(served)}.context_length"] = served.context_length
    return Json(
        {
            "modified_at": _time(served),
            "details": _details(served),
            "model_info": facts,
            "capabilities": ["completion", "tools", *_thinks(served)],
            "template": served.template.sources.get("default", ""),
            "parameters": "",
            "license": "",
        }
    )


def _thinks(served: Served) -> list[str]:
    return ["thinking"] if served.format.think_end is not None else []


def _family(served: Served) -> str:
    return str(served.facts.get("family", "flashmoe"))


def _model(served: Served) -> dict[str, Any]:
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": _time(served),
        "size": served.facts.get("bytes", 0),
        "digest": str(served.facts.get("digest", "")),
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "flashmoe",
        "family": _family(served),
        "families": [_family(served)],
        "parameter_size": str(served.facts.get("parameters", "")),
        "quantization_level": str(served.facts.get("experts", "")),
    }


def _time(served: Served) -> str:
    return datetime.fromtimestamp(served.created, UTC).isoformat()
