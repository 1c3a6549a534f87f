"""How long reads were under way: from the start of a layer's reads until the last is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any

from flashmoe.experts.streamed import RoutedTicket, StreamedExperts
from flashmoe.generate.engine import Engine
from flashmoe.layers.moe import Ahead
from flashmoe.ops.base import Floats, Ints


class ReadingClock:
    """Routed experts that add up the time in which reads were under way."""

    def __init__(self, inner: StreamedExperts) -> None:
        self._inner = inner
        self.seconds = 0.0

    @property
    def wants_ahead(self) -> bool:
        """As the inner one."""
        return self._inner.wants_ahead

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> RoutedTicket:
        """As the inner one; the clock starts if anything has to be read."""
        start, misses = perf_counter(), self._inner.cache.stats.misses
        ticket: Any = self._inner.begin(layer, ids, ahead)
        if self._inner.cache.stats.misses > misses:
            ticket.reads = _TimedReads(ticket.reads, start, self)
        routed: RoutedTicket = ticket
        return routed

    def finish(self, ticket: RoutedTicket, x: Floats, weights: Floats, out: Floats) -> None:
        """As the inner one."""
        self._inner.finish(ticket, x, weights, out)

    def end_step(self) -> None:
        """As the inner one."""
        self._inner.end_step()


class _TimedReads:
    """A ticket whose misses are still to land."""

    def __init__(self, inner: Any, start: float, clock: ReadingClock) -> None:
        self._inner, self._start, self._clock = inner, start, clock

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        landed = self._start
        try:
            for batch in self._inner.batches():
                landed = perf_counter()
                yield batch
        finally:
            self._clock.seconds += landed - self._start

    def __enter__(self) -> _TimedReads:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)


@contextmanager
def reading_clock(engine: Engine) -> Iterator[ReadingClock]:
    """Put a clock before the engine's experts for the time of the block."""
    inner = engine.experts
    assert isinstance(inner, StreamedExperts)
    clock = ReadingClock(inner)
    engine.experts = clock
    try:
        yield clock
    finally:
        engine.experts = inner
