"""Requests on their way through the engine: its events, brought to the event loop and parsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from flashmoe.errors import RequestError
from flashmoe.generate.request import (
    Event,
    Failed,
    Finished,
    Generated,
    GenerationRequest,
    OnEvent,
    Prefill,
    PromptScored,
    Queued,
    Token,
    Usage,
)
from flashmoe.parsers.base import Content, Reasoning, ReplyEvent, ReplyParser
from flashmoe.server.errors import request_error


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """Stop it before its next step; any thread."""


class Submit(Protocol):
    """Worker.submit."""

    def __call__(
        self, request: GenerationRequest, on_event: OnEvent, key: str | None = None
    ) -> Ticket: ...


@dataclass(frozen=True)
class Question:
    """One answer to be had: what the engine gets, and who reads its tokens.

    key: equal keys share one run of the engine.
    """

    request: GenerationRequest
    parser: ReplyParser
    key: str | None = None


@dataclass(frozen=True)
class Part:
    """The next part of an answer. tokens: those that a text consists of, for log probabilities."""

    event: ReplyEvent
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class End:
    """The answer is complete. reason: "stop" or "length"."""

    reason: str
    stop_string: str | None
    usage: Usage
    reasoning_tokens: int


Update = Prefill | PromptScored | Part | End
Observer = Callable[[Usage, float], None]


@dataclass
class _Choice:
    """One answer as its tokens come."""

    parser: ReplyParser
    held: list[Token] = field(default_factory=list)
    reasoning_tokens: int = 0

    def push(self, token: Token) -> list[Part]:
        self.held.append(token)
        return self._parts(self.parser.push(token.id, token.raw))

    def finish(self) -> list[Part]:
        return self._parts(self.parser.finish())

    def _parts(self, events: Sequence[ReplyEvent]) -> list[Part]:
        parts = []
        for event in events:
            shown = tuple(self.held) if isinstance(event, Content | Reasoning) else ()
            self.reasoning_tokens += len(shown) if isinstance(event, Reasoning) else 0
            parts.append(Part(event, shown))
            self.held.clear()
        return parts


class Answers:
    """Submits questions and yields (index of the question, update) until all are answered.

    Make it on the event loop, and `close` it: that cancels what still runs. seconds: the most that
    all may take. observe: told of each answer's usage, and seconds to the first token of all.
    """

    def __init__(
        self,
        submit: Submit,
        questions: Sequence[Question],
        seconds: float,
        observe: Observer = lambda usage, first: None,
    ) -> None:
        self._started, self._first_token = monotonic(), 0.0
        self._deadline, self._observe = self._started + seconds, observe
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._choices = [_Choice(question.parser) for question in questions]
        self._open = len(questions)
        self.prompt_tokens = len(questions[0].request.prompt_ids)
        self.phase = "queued"
        self._tickets: list[Ticket] = []
        self._submit(submit, questions)

    def _submit(self, submit: Submit, questions: Sequence[Question]) -> None:
        try:
            for index, question in enumerate(questions):
                ticket = submit(question.request, self._receiver(index), key=question.key)
                self._tickets.append(ticket)
        except BaseException:
            self.close()
            raise

    def _receiver(self, index: int) -> OnEvent:
        """What the engine's thread calls."""

        def receive(event: Event) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return receive

    def close(self) -> None:
        """Cancel what runs; may be called again."""
        for ticket in self._tickets:
            ticket.cancel()

    async def updates(self) -> AsyncGenerator[tuple[int, Update], None]:
        """Every update, in order per answer. Raises RequestError when the engine failed."""
        try:
            while self._open:
                index, event = await self._next()
                for update in self._understood(index, event):
                    yield index, update
        finally:
            self.close()

    async def _next(self) -> tuple[int, Event]:
        left = self._deadline - monotonic()
        try:
            # Not wait_for: it can lose a cancellation that meets an event.
            async with asyncio.timeout(max(0.0, left)):
                return await self._events.get()
        except TimeoutError as error:
            told = "the answer took longer than this server allows"
            raise RequestError(told, status=504, code="timeout") from error

    def _understood(self, index: int, event: Event) -> list[Update]:
        match event:
            case Queued(place):
                self.phase = f"queued, {place} before"
            case Prefill(done, total, _):
                self.phase = f"prompt {done}/{total}"
                return [event]
            case PromptScored():
                return [event]
            case Generated(token):
                return self._token(index, token)
            case Finished():
                return self._finished(index, event)
            case Failed(error):
                raise request_error(error)
        return []

    def _token(self, index: int, token: Token) -> list[Update]:
        self._first_token = self._first_token or monotonic() - self._started
        self.phase = "generating"
        return list(self._choices[index].push(token))

    def _finished(self, index: int, event: Finished) -> list[Update]:
        if event.reason == "cancelled":
            told = "the answer was cut short: the server is stopping"
            raise RequestError(told, status=503, code="cancelled")
        self._open -= 1
        self._observe(event.usage, self._first_token)
        choice = self._choices[index]
        parts = choice.finish()
        count = choice.reasoning_tokens
        return [*parts, End(event.reason, event.stop_string, event.usage, count)]
