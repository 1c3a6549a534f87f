"""What every handler gets: the model once it is there, settings, metrics, and how to ask."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.server.answers import Answers, Question
from flashmoe.server.body import read_body
from flashmoe.server.metrics import Metrics
from flashmoe.server.reply import Reply, gather
from flashmoe.server.served import Served
from flashmoe.server.settings import ServerSettings
from flashmoe.server.wire import Json, Stream, comment, while_connected, with_keepalive

M = TypeVar("M", bound=BaseModel)

# What clients are told while the model is being loaded.
_LOADING_RETRY = 5.0
# How many drawn answers are remembered for a client that tries again.
_REMEMBERED = 256


@dataclass
class Service:
    """State of a running server. served is None until the model is loaded."""

    settings: ServerSettings
    served: Served | None = None
    metrics: Metrics = field(default_factory=Metrics)
    _drawn: dict[str, str] = field(default_factory=dict)

    def model(self) -> Served:
        """The model. Raises RequestError 503 while it is being loaded."""
        if self.served is None:
            raise RequestError(
                "the model is being loaded", status=503, code="loading", retry_after=_LOADING_RETRY
            )
        return self.served

    def run_key(self, request: Request, body: BaseModel) -> str:
        """Equal for requests that shall share one run: a client's second try while the first runs.

        Without chance equal requests have equal answers. With chance only a request that says it is
        a repetition gets the answer of the one before.
        """
        told = f"{request.url.path}\n{body.model_dump_json(exclude={'stream', 'stream_options'})}"
        digest = hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()
        if named := request.headers.get("idempotency-key"):
            return f"{digest}/{named}"
        if _without_chance(body):
            return digest
        return self._drawn_key(digest, _is_retry(request))

    def _drawn_key(self, digest: str, retry: bool) -> str:
        if not (retry and digest in self._drawn):
            self._drawn[digest] = f"{digest}/{secrets.token_hex(8)}"
        while len(self._drawn) > _REMEMBERED:
            del self._drawn[next(iter(self._drawn))]
        return self._drawn[digest]

    async def ask(self, prepare: Callable[[], Sequence[Question]]) -> Answers:
        """Submit what `prepare` makes; it runs beside the event loop. Raises FlashMoeError."""
        questions = await asyncio.to_thread(prepare)
        worker, seconds = self.model().worker, self.settings.limits.answer_seconds
        return Answers(worker.submit, questions, seconds, self.metrics.observe)

    def stream(
        self, answers: Answers, chunks: AsyncGenerator[bytes, None], media: str, blank: bytes = b""
    ) -> Stream:
        """An answer sent as it comes. blank: sent in silence, else a comment on the phase."""
        living = with_keepalive(
            chunks, self.settings.keepalive, lambda: blank or comment(answers.phase)
        )
        return Stream(living, media, answers.close)


def _without_chance(body: BaseModel) -> bool:
    seed, temperature = getattr(body, "seed", None), getattr(body, "temperature", None)
    return seed is not None or temperature == 0


def _is_retry(request: Request) -> bool:
    return request.headers.get("x-stainless-retry-count", "0") != "0"


def service_of(request: Request) -> Service:
    """The service behind a request."""
    return cast(Service, request.app.state.service)


async def body_of(request: Request, kind: type[M]) -> M:
    """The checked body. Raises RequestError."""
    return await read_body(request, kind, service_of(request).settings.limits)


async def whole(
    request: Request, answers: Answers, count: int, build: Callable[[list[Reply]], object]
) -> Response:
    """The complete answers as one JSON body; cancelled when the client goes away."""
    try:
        replies = await while_connected(request.receive, gather(answers, count), answers.close)
    finally:
        answers.close()
    return Response(status_code=499) if replies is None else Json(build(replies))
