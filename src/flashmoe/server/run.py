"""One run of a request, and those who listen to it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from flashmoe.generate.request import (
    Event,
    Failed,
    Finished,
    Generated,
    GenerationRequest,
    OnEvent,
    Prefill,
    Queued,
    Usage,
)
from flashmoe.generate.sequence import RunningSequence

Phase = Literal["queued", "prefill", "decode"]


@dataclass(frozen=True)
class SlotView:
    """A request that waits or runs.

    tokens_done, tokens_total: of the prompt in phases "queued" and "prefill", of the answer (total:
    max_tokens) in phase "decode". eta_seconds: until that many are done at the speed so far, None
    where nothing is known of it yet. queue_place: 0 is the next, None once it runs.
    """

    id: int
    phase: Phase
    tokens_done: int
    tokens_total: int
    eta_seconds: float | None
    queue_place: int | None


class Ticket:
    """One who asked for a request."""

    def __init__(self, run: Run, on_event: OnEvent, wake: Callable[[], None]) -> None:
        self.run, self.on_event, self._wake = run, on_event, wake
        self.cancelled = False

    @property
    def id(self) -> int:
        """Of the run; who shares a run shares its id."""
        return self.run.id

    def cancel(self) -> None:
        """From any thread: stop before the next step, or the next layer of a prompt. The last
        event is then Finished("cancelled"). Does nothing once it is over."""
        self.cancelled = True
        self._wake()


class Run:
    """A request that waits or runs, and the tickets of those who want it.

    Every call is made under the worker's lock.
    """

    def __init__(self, id: int, request: GenerationRequest, key: Hashable | None) -> None:
        self.id, self.request, self.key = id, request, key
        self.tickets: list[Ticket] = []
        self.sequence: RunningSequence | None = None
        self.over = False
        self.submitted = perf_counter()
        self._place: int | None = None
        self._told: list[Event] = []
        self._done, self._since = 0, 0.0  # tokens of this phase, when it began

    @property
    def order(self) -> tuple[int, int]:
        """Who is served first."""
        return self.request.priority, self.id

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(ticket.cancelled for ticket in self.tickets)

    def join(self, ticket: Ticket) -> None:
        """Tell what was told so far, and from now on."""
        for event in self._told:
            ticket.on_event(event)
        self.tickets.append(ticket)

    def tell(self, event: Event) -> None:
        """To all who listen."""
        self.over = self.over or isinstance(event, Finished | Failed)
        self._count(event)
        self._remember(event)
        for ticket in self.tickets:
            ticket.on_event(event)

    def tell_place(self, place: int) -> None:
        """Where it is in the queue, if that has changed."""
        if place != self._place:
            self._place = place
            self.tell(Queued(place))

    def end_waiting(self) -> None:
        """It was cancelled before it ran."""
        tokens = len(self.request.prompt_ids)
        waited = perf_counter() - self.submitted
        usage = Usage(prompt_tokens=tokens, queue_seconds=waited)
        self.tell(Finished("cancelled", None, usage))

    def let_go(self) -> None:
        """Those who cancelled leave, where others stay."""
        leaving = [ticket for ticket in self.tickets if ticket.cancelled]
        self.tickets = [ticket for ticket in self.tickets if not ticket.cancelled]
        for ticket in leaving:
            ticket.on_event(Finished("cancelled", None, Usage()))

    def view(self, place: int | None) -> SlotView:
        """For people."""
        sequence, total = self.sequence, len(self.request.prompt_ids)
        if sequence is None:
            return SlotView(self.id, "queued", 0, total, None, place)
        if sequence.answered:
            most = self.request.sampling.max_tokens
            eta = self._eta(self._done, most)
            return SlotView(self.id, "decode", sequence.answered, most, eta, None)
        eta = self._eta(self._done - sequence.cached, total - sequence.cached)
        return SlotView(self.id, "prefill", self._done, total, eta, None)

    def _eta(self, done: int, total: int) -> float | None:
        passed = perf_counter() - self._since
        return passed / done * (total - done) if done > 0 else None

    def _count(self, event: Event) -> None:
        if isinstance(event, Prefill):
            self._since = self._since or perf_counter()
            self._done = event.done
        elif isinstance(event, Generated):
            assert self.sequence is not None
            if self.sequence.answered == 1:
                self._since, self._done = perf_counter(), 0
            else:
                self._done += 1

    def _remember(self, event: Event) -> None:
        """For those who join later; of progress the latest only."""
        if self.key is None:
            return
        passing = isinstance(event, Queued | Prefill)
        if passing and self._told and isinstance(self._told[-1], type(event)):
            self._told.pop()
        self._told.append(event)
