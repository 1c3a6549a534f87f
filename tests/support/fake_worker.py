"""A worker that answers what the test says: the events of the real one, without an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flashmoe.demo import demo_model_path
from flashmoe.errors import FlashMoeError, QueueFullError
from flashmoe.generate.request import (
    Failed,
    Finished,
    Generated,
    GenerationRequest,
    Likely,
    OnEvent,
    Prefill,
    PromptScored,
    Queued,
    Token,
    Usage,
)
from flashmoe.generate.stop import StopStrings
from flashmoe.server.worker import SlotView, WorkerFigures
from flashmoe.text.tokenizer import Tokenizer

Script = Callable[[GenerationRequest], str]


@dataclass
class FakeTicket:
    """Its run looks at `gone` before every step."""

    id: int
    request: GenerationRequest
    gone: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.gone.set()


class FakeWorker:
    """Every request runs at once in a thread of its own.

    script: the answer, with control tokens as their text. step: seconds per token; prefill:
    seconds for the prompt. room: most requests at a time. error: what ends every request.
    """

    def __init__(
        self,
        script: Script | str = "Hello there.",
        *,
        step: float = 0.0,
        prefill: float = 0.0,
        room: int = 100,
        error: FlashMoeError | None = None,
    ) -> None:
        self.tokenizer = Tokenizer(demo_model_path())
        self.script: Script = script if callable(script) else lambda request: script
        self.step, self.prefill, self.room, self.error = step, prefill, room, error
        self.tickets: list[FakeTicket] = []
        self.keys: list[object] = []

    def submit(
        self, request: GenerationRequest, on_event: OnEvent, key: object = None
    ) -> FakeTicket:
        running = [ticket for ticket in self.tickets if not ticket.over.is_set()]
        if len(running) >= self.room:
            raise QueueFullError(len(running), 7.0)
        ticket = FakeTicket(len(self.tickets), request)
        self.tickets.append(ticket)
        self.keys.append(key)
        threading.Thread(target=self._run, args=(ticket, on_event), daemon=True).start()
        return ticket

    def slots(self) -> list[SlotView]:
        running = [ticket for ticket in self.tickets if not ticket.over.is_set()]
        return [SlotView(ticket.id, "decode", 1, 2, None, None) for ticket in running]

    def figures(self) -> WorkerFigures:
        return WorkerFigures(requests=len(self.tickets), hits=75, misses=25)

    def close(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    @property
    def last(self) -> GenerationRequest:
        """The request submitted last."""
        return self.tickets[-1].request

    def _run(self, ticket: FakeTicket, on_event: OnEvent) -> None:
        try:
            on_event(self._answered(ticket, on_event))
        finally:
            ticket.over.set()

    def _answered(self, ticket: FakeTicket, on_event: OnEvent) -> Finished | Failed:
        request, total = ticket.request, len(ticket.request.prompt_ids)
        on_event(Queued(0))
        on_event(Prefill(0, total, 2))
        if self._wait(ticket, self.prefill):
            return self._finish(ticket, "cancelled", 0)
        if self.error is not None:
            return Failed(self.error)
        on_event(Prefill(total, total, 2))
        if request.prompt_logprobs is not None:
            on_event(PromptScored(self._tokens(request.prompt_ids, request.prompt_logprobs, True)))
        return self._decoded(ticket, on_event)

    def _decoded(self, ticket: FakeTicket, on_event: OnEvent) -> Finished:
        request = ticket.request
        ids = self.tokenizer.encode(self.script(request)) if request.answer else []
        stop = StopStrings(request.sampling.stop)
        for count, token in enumerate(self._tokens(ids, request.top_logprobs), 1):
            if self._wait(ticket, self.step):
                return self._finish(ticket, "cancelled", count)
            if count > request.sampling.max_tokens:
                return self._finish(ticket, "length", count - 1)
            shown = stop.push(token.raw)
            if stop.matched is not None:
                return self._finish(ticket, "stop", count, stop.matched)
            on_event(Generated(Token(token.id, shown, shown, token.logprob, token.top)))
        return self._finish(ticket, "stop" if request.answer else "length", len(ids) + 1)

    def _tokens(
        self, ids: Sequence[int], top: int | None, prompt: bool = False
    ) -> tuple[Token, ...]:
        made = []
        for place, id in enumerate(ids):
            raw = self.tokenizer.decode([id], skip_special=False)
            scored = top is not None and not (prompt and place == 0)
            likely = tuple(Likely(id + i, raw, -0.5 - i) for i in range(top or 0)) if scored else ()
            made.append(Token(id, raw, raw, -0.5 if scored else None, likely))
        return tuple(made)

    def _wait(self, ticket: FakeTicket, seconds: float) -> bool:
        if seconds == 0:
            time.sleep(0)
        return ticket.gone.wait(seconds) if seconds else ticket.gone.is_set()

    def _finish(
        self, ticket: FakeTicket, reason: str, tokens: int, stop: str | None = None
    ) -> Finished:
        usage = Usage(
            prompt_tokens=len(ticket.request.prompt_ids),
            cached_tokens=2,
            completion_tokens=tokens,
            prefill_seconds=0.5,
            decode_seconds=1.0,
            expert_hits=75,
            expert_misses=25,
            bytes_read=1_500_000_000,
        )
        return Finished(reason, stop, usage)  # type: ignore[arg-type]
