"""One thread that runs the engine, and a bounded queue before it.

Any thread may submit, cancel and look; only the engine thread touches the model. One lock guards
the queue and the listeners; it is never held while a pass runs, only between two layers.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Hashable
from dataclasses import dataclass, replace
from threading import Condition, RLock, Thread
from time import perf_counter
from typing import Protocol, Self

from flashmoe.errors import FlashMoeError, QueueFullError, RequestError
from flashmoe.generate.engine import Prefixes
from flashmoe.generate.request import (
    Event,
    Failed,
    Finished,
    Generated,
    GenerationRequest,
    OnEvent,
)
from flashmoe.generate.scheduler import Scheduler
from flashmoe.server.run import Run, SlotView, Ticket
from flashmoe.stats import Stats

__all__ = ["ServedModel", "SlotView", "Ticket", "Worker", "WorkerFigures"]

# Before any request has ended: what to tell those who find the queue full.
_FIRST_GUESS_S = 10.0
_LONGEST_RETRY_S = 600.0


class ServedModel(Protocol):
    """What a worker needs of a flashmoe.Model."""

    @property
    def parallel(self) -> int: ...

    @property
    def stats(self) -> Stats: ...

    def scheduler(self, prefixes: Prefixes | None = None) -> Scheduler: ...


@dataclass(frozen=True)
class WorkerFigures:
    """Counters since the start, and how many wait and run now.

    rejected: found the queue full. joined: shared the run of another request. prompt_tokens:
    of prompts that were started, prefix_reused_tokens: of those, not run again.
    """

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    joined: int = 0
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    disk_wait_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefix_reused_tokens: int = 0
    queue_depth: int = 0
    running: int = 0


class Worker:
    """Runs requests on a loaded model, as many at once as it was loaded for (`parallel`).

    queue: how many more may wait. prefixes: where beginnings of sequences are kept
    (flashmoe.Model.prefix_cache).
    """

    def __init__(
        self, model: ServedModel, queue: int = 64, prefixes: Prefixes | None = None
    ) -> None:
        self._model, self._capacity = model, queue
        self._scheduler = model.scheduler(prefixes)
        self._scheduler.between = self._between
        self._changed = Condition(RLock())
        self._waiting: list[Run] = []
        self._running: list[Run] = []
        self._shared: dict[Hashable, Run] = {}
        self._ids = itertools.count()
        self._counts = WorkerFigures()
        self._seconds_per_request = 0.0
        self._closing = self._ended = False
        self._thread = Thread(target=self._work, name="flashmoe-engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def close(self) -> None:
        """Cancel what runs and waits, end the thread; the model stays open."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(
        self, request: GenerationRequest, on_event: OnEvent, key: Hashable | None = None
    ) -> Ticket:
        """Queue a request.

        on_event is called in the engine thread; it must not block, and must not raise.
        key: requests with the same key share one run: who comes later gets the events so far
        (inside submit, in the caller's thread; of progress the latest only) and then the rest; the
        run is cancelled when all of them cancelled. None shares nothing.

        Raises QueueFullError, ContextLengthError, UsageError (no prompt), RequestError (503 once
        it is closed).
        """
        self._scheduler.check(request)
        with self._changed:
            if self._closing or self._ended:
                raise RequestError("the engine has been stopped", status=503, code="stopped")
            run = self._shared.get(key) if key is not None else None
            if run is None or run.unwanted:
                run = self._enqueue(request, key)
            else:
                self._count(joined=1)
            ticket = Ticket(run, on_event, self._wake)
            run.join(ticket)
            self._changed.notify_all()
            return ticket

    def slots(self) -> list[SlotView]:
        """All that run, then all that wait, in order."""
        with self._changed:
            running = [run.view(None) for run in self._running]
            return running + [run.view(place) for place, run in enumerate(self._waiting)]

    def figures(self) -> WorkerFigures:
        """Counters for /metrics."""
        stats = self._model.stats
        phases = stats.phase_seconds, stats.prefill_phase_seconds
        with self._changed:
            return replace(
                self._counts,
                hits=stats.cache_hits,
                misses=stats.cache_misses,
                bytes_read=stats.bytes_read,
                disk_wait_seconds=sum(p.get("disk_wait", 0.0) for p in phases),
                queue_depth=len(self._waiting),
                running=len(self._running),
            )

    # The queue, under the lock.

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _enqueue(self, request: GenerationRequest, key: Hashable | None) -> Run:
        free = self._model.parallel - len(self._running)
        if len(self._waiting) >= self._capacity + free:
            self._count(rejected=1)
            raise QueueFullError(len(self._waiting), self._retry_after())
        run = Run(next(self._ids), request, key)
        insort(self._waiting, run, key=lambda r: r.order)
        if key is not None:
            self._shared[key] = run
        self._count(requests=1)
        return run

    def _retry_after(self) -> float:
        """Until about one place is free."""
        each = self._seconds_per_request or _FIRST_GUESS_S
        return min(_LONGEST_RETRY_S, max(1.0, each / self._model.parallel))

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self._counts, name) + n for name, n in more.items()}
        self._counts = replace(self._counts, **counts)

    def _forget(self, run: Run) -> None:
        if run.key is not None and self._shared.get(run.key) is run:
            del self._shared[run.key]

    # The engine thread.

    def _work(self) -> None:
        try:
            while self._admit():
                self._scheduler.step()
                self._settle()
        finally:
            self._abandon()

    def _admit(self) -> bool:
        """Wait for work and take in what there is room for; False when there is nothing more."""
        with self._changed:
            self._settle()
            while not (self._waiting or self._running):
                if self._closing:
                    return False
                self._changed.wait()
                self._settle()
            while self._waiting and not self._scheduler.full:
                self._begin(self._waiting.pop(0))
            self._tell_places()
            return True

    def _begin(self, run: Run) -> None:
        def on_event(event: Event) -> None:
            with self._changed:
                self._book(run, event)
                run.tell(event)

        waited = perf_counter() - run.submitted
        self._running.append(run)
        run.sequence = self._scheduler.start(run.request, on_event, waited)
        self._count(
            prompt_tokens=run.sequence.prompt_tokens, prefix_reused_tokens=run.sequence.cached
        )

    def _between(self) -> None:
        """Between two layers of a prompt."""
        with self._changed:
            self._settle()
            self._tell_places()

    def _settle(self) -> None:
        """Forget what is over, act on what was cancelled."""
        with self._changed:
            self._running = [run for run in self._running if not run.over]
            for run in (*self._waiting, *self._running):
                for ticket in run.tickets if self._closing else ():
                    ticket.cancelled = True
                if not run.unwanted:
                    run.let_go()
                elif run.sequence is not None:
                    run.sequence.cancelled = True
                else:
                    run.end_waiting()
                    self._forget(run)
                    self._count(cancelled=1)
            self._waiting = [run for run in self._waiting if not run.over]

    def _tell_places(self) -> None:
        for place, run in enumerate(self._waiting):
            run.tell_place(place)

    def _book(self, run: Run, event: Event) -> None:
        if isinstance(event, Generated):
            self._count(completion_tokens=1)
        elif isinstance(event, Failed):
            self._count(failed=1)
            self._forget(run)
        elif isinstance(event, Finished):
            self._count(**{"cancelled" if event.reason == "cancelled" else "finished": 1})
            self._forget(run)
            spent = event.usage.prefill_seconds + event.usage.decode_seconds
            before = self._seconds_per_request or spent
            self._seconds_per_request = (before + spent) / 2

    def _abandon(self) -> None:
        """The thread ends: whoever still waits is told."""
        with self._changed:
            self._ended = True
            for run in (*self._running, *self._waiting):
                run.tell(Failed(FlashMoeError("the engine has stopped", where="worker")))
            self._running, self._waiting = [], []
            self._shared.clear()
        self._scheduler.close()
