"""One thread that runs the engine, and a bounded queue before it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal, Self

from flashmoe.generate.request import GenerationRequest, OnEvent

Phase = Literal["queued", "prefill", "decode"]


@dataclass(frozen=True)
class SlotView:
    """A request that waits or runs.

    tokens_done, tokens_total: of the prompt in phase "prefill", of the answer (total: max_tokens)
    in phase "decode". eta_seconds: until that many are done at the present speed, None if nothing
    is known of it yet. queue_place: 0 is the next, None once it runs.
    """

    id: int
    phase: Phase
    tokens_done: int
    tokens_total: int
    eta_seconds: float | None
    queue_place: int | None


@dataclass(frozen=True)
class WorkerFigures:
    """Counters since the start, and how many wait and run now."""

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


class Ticket:
    """A request on its way."""

    id: int

    def cancel(self) -> None:
        """From any thread: stop before the next step, or the next layer of its prompt. The last
        event is then Finished("cancelled"). Does nothing once it is over."""
        raise NotImplementedError


class Worker:
    """Runs requests on a loaded model, up to `parallel` at once; `queue` more may wait."""

    def __init__(self, model: Any, parallel: int, queue: int, prefix: Any = None) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Start the engine thread."""

    def close(self) -> None:
        """Cancel what runs and waits, end the thread; the model stays open."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(
        self, request: GenerationRequest, on_event: OnEvent, key: Hashable | None = None
    ) -> Ticket:
        """Queue a request. on_event is called in the engine thread and must not block.

        key: requests with the same key share one run: who comes later gets the events so far
        (replayed inside submit, in the caller's thread) and then the rest; the run is cancelled
        when all of them cancelled. None shares nothing.

        Raises QueueFullError, ContextLengthError, UsageError (closed, or no prompt).
        """
        raise NotImplementedError

    def slots(self) -> list[SlotView]:
        """All that run, then all that wait, in order."""
        raise NotImplementedError

    def figures(self) -> WorkerFigures:
        """Counters for /metrics."""
        raise NotImplementedError
