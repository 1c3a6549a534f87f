"""One layer's experts on their way: handed out as they become available."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from types import TracebackType
from typing import Self

from flashmoe.experts.addresses import AddressBook
from flashmoe.experts.fetch import Fetcher, Landing
from flashmoe.experts.plan import Load, Plan
from flashmoe.experts.policy import Key
from flashmoe.experts.residency import Residency, SlotState
from flashmoe.experts.stats import CacheStats


class Ticket:
    """What `ExpertCache.begin` returns. Use it in a `with`, and `batches()` once.

    Leaving the `with` early (an error, Ctrl-C, a consumer that stops) is fine at any point: reads
    are stopped or awaited, what is whole stays in the cache.
    """

    def __init__(
        self,
        wanted: Sequence[Key],
        decided: Plan,
        residency: Residency,
        book: AddressBook,
        fetcher: Fetcher,
        stats: CacheStats,
    ) -> None:
        self._wanted, self._plan = wanted, decided
        self._residency, self._book = residency, book
        self._fetcher, self._stats = fetcher, stats
        self._slots = {hit.index: hit.slot for hit in decided.hits}
        self._slots |= {load.index: load.slot for load in decided.loads}
        self._followers = {load.after: load for load in decided.loads if load.after is not None}
        self._left = len(decided.loads)
        self._closed = False

    def start(self) -> None:
        """Start every read that has a slot now. Called once, by the cache."""
        self._fetcher.settle_guesses({load.key for load in self._plan.loads})
        self._start([load for load in self._plan.loads if load.after is None])

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield [(index into ids, address of the record)]: what is there first, then as it lands.

        Each index comes once. An address is good until the next item is asked for. Raises
        StorageError or ChecksumError for the first record that could not be had.
        """
        there = [hit.index for hit in self._plan.hits]
        if self._left:
            there += self._take(self._fetcher.arrived())
        if there:
            yield from self._hand_out(there)
        while self._left:
            yield from self._hand_out(self._wait())

    def close(self) -> None:
        """End the step of this layer. Does nothing the second time."""
        if self._closed:
            return
        if self._fetcher.busy:
            self._settle(self._fetcher.drain())
        for load in self._plan.loads if self._left else ():
            if self._residency.state(load.slot) is SlotState.LOADING:
                self._residency.drop(load.slot)
        # In order of `wanted`, not of arrival: what is evicted next must not depend on timing.
        self._residency.used(self._wanted)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, loads: Sequence[Load]) -> None:
        for load in loads:
            self._residency.start(load)
            if load.evicts is not None:
                self._book.withdraw(load.evicts)
        self._fetcher.start(loads)

    def _hand_out(self, indices: list[int]) -> Iterator[list[tuple[int, int]]]:
        yield [(index, self._book.of(self._slots[index])) for index in indices]
        if self._followers:
            self._start([self._followers[i] for i in indices if i in self._followers])

    def _wait(self) -> list[int]:
        assert not self._closed, "the ticket is closed"
        begin = perf_counter()
        landings = self._fetcher.wait()
        self._stats.wait_seconds += perf_counter() - begin
        return self._take(landings)

    def _take(self, landings: Sequence[Landing]) -> list[int]:
        self._settle(landings)
        for landing in landings:
            if landing.error is not None:
                raise landing.error
        self._left -= len(landings)
        return [landing.load.index for landing in landings]

    def _settle(self, landings: Sequence[Landing]) -> None:
        for landing in landings:
            slot = landing.load.slot
            if landing.error is None:
                self._residency.landed(slot)
                self._book.publish(landing.load.key, slot)
                self._stats.bytes_read += landing.nbytes
            else:
                self._residency.drop(slot)
