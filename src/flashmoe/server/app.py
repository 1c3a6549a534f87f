"""The application: routes, the guard before them, errors behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Lifespan

from flashmoe.errors import FlashMoeError
from flashmoe.server import (
    anthropic,
    ollama,
    ollama_models,
    openai_chat,
    openai_completions,
    openai_responses,
    openapi,
    status,
    tokens,
)
from flashmoe.server.errors import on_fault, on_http_error, on_our_error
from flashmoe.server.page import Page
from flashmoe.server.security import Guard
from flashmoe.server.service import Service

Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    """The server over `service`. lifespan: what is done before the first and after the last
    request."""
    app = Starlette(
        routes=routes(),
        middleware=[Middleware(Guard, service=service)],
        exception_handlers={
            FlashMoeError: on_our_error,
            HTTPException: on_http_error,
            Exception: on_fault,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def routes() -> list[Route]:
    """Every endpoint."""
    page = Page()
    return [
        _get("/", page.index),
        _get("/page/{name}", page.part),
        _get("/health", status.health),
        _get("/v1/health", status.health),
        _get("/openapi.json", openapi.openapi),
        _get("/metrics", status.metrics),
        _get("/slots", status.slots),
        _get("/v1/models", status.models),
        _get("/models", status.models),
        _get("/v1/models/{name:path}", status.model),
        _post("/v1/chat/completions", openai_chat.chat_completions),
        _post("/v1/completions", openai_completions.completions),
        _post("/v1/responses", openai_responses.responses),
        _post("/v1/messages", anthropic.messages),
        _post("/v1/messages/count_tokens", anthropic.count_tokens),
        _post("/api/chat", ollama.chat),
        _post("/api/generate", ollama.generate),
        _post("/api/show", ollama_models.show),
        _get("/api/tags", ollama_models.tags),
        _get("/api/ps", ollama_models.running),
        _get("/api/version", ollama_models.version),
        _post("/tokenize", tokens.tokenize),
        _post("/detokenize", tokens.detokenize),
        _post("/apply-template", tokens.apply_template),
    ]


def _get(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["GET"])


def _post(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["POST"])
