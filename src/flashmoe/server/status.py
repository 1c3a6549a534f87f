"""How the server is: /health, /metrics, /slots, and what it serves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.server.served import Served
from flashmoe.server.service import service_of
from flashmoe.server.wire import Json


async def health(request: Request) -> Response:
    """200 once the model is loaded, 503 before."""
    service_of(request).model()
    return Json({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service = service_of(request)
    figures = service.served.worker.figures() if service.served else None
    text = service.metrics.text(figures)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def slots(request: Request) -> Response:
    """What runs and what waits: phase, tokens done, time left, place in the queue."""
    return Json([asdict(slot) for slot in service_of(request).model().worker.slots()])


async def models(request: Request) -> Response:
    """The one model."""
    return Json({"object": "list", "data": [model_object(service_of(request).model())]})


async def model(request: Request) -> Response:
    """The model by its id. Raises RequestError 404 for another."""
    served, wanted = service_of(request).model(), request.path_params["name"]
    if wanted != served.name:
        told = f"there is no model {wanted!r}; this server has {served.name!r}"
        raise RequestError(told, status=404, code="model_not_found", param="model")
    return Json(model_object(served))


def model_object(served: Served) -> dict[str, Any]:
    """A model in OpenAI's list, with its context length under the names that clients look for."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "flashmoe",
        "context_length": served.context_length,
        "max_model_len": served.context_length,
        "meta": {"n_ctx": served.context_length, "n_vocab": served.vocab_size},
        "flashmoe": dict(served.facts),
    }
