"""One layer's experts on their way: handed out as they become available."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from types import TracebackType
from typing import Self

from flashmoe.experts.fetch import Fetcher, Landing
from flashmoe.experts.plan import Plan
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
        fetcher: Fetcher,
        stats: CacheStats,
    ) -> None:
        self._wanted, self._plan = wanted, decided
        self._residency, self._fetcher, self._stats = residency, fetcher, stats
        self._slots = {hit.index: hit.slot for hit in decided.hits}
        self._slots |= {load.index: load.slot for load in decided.loads}
        self._followers = {load.after: load for load in decided.loads if load.after is not None}
        self._left = len(decided.loads)
        self._closed = False

    def start(self) -> None:
        """Hold the hits and start every read that has a slot now. Called once, by the cache."""
        for hit in self._plan.hits:
            self._residency.hold(hit.slot)
        for load in self._plan.loads:
            if load.after is None:
                self._residency.start(load)
                self._fetcher.start(load)

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield [(index into ids, address of the record)]: the hits first, misses as they land.

        Each index comes once. An address is good until the next item is asked for. Raises
        StorageError or ChecksumError for the first record that could not be had.
        """
        if self._plan.hits:
            yield from self._hand_out([hit.index for hit in self._plan.hits])
        while self._left:
            yield from self._hand_out(self._wait())

    def close(self) -> None:
        """End the step of this layer. Does nothing the second time."""
        if self._closed:
            return
        if self._fetcher.flying:
            self._settle(self._fetcher.drain())
        for slot in set(self._slots.values()):
            if self._residency.state(slot) is SlotState.LOADING:
                self._residency.drop(slot)
            elif self._residency.state(slot) is SlotState.HELD:
                self._residency.release(slot)
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

    def _hand_out(self, indices: list[int]) -> Iterator[list[tuple[int, int]]]:
        yield [(index, self._fetcher.address_of(self._slots[index])) for index in indices]
        for index in indices:
            self._residency.release(self._slots[index])
            follower = self._followers.get(index)
            if follower is not None:
                self._residency.start(follower)
                self._fetcher.start(follower)

    def _wait(self) -> list[int]:
        assert not self._closed, "the ticket is closed"
        begin = perf_counter()
        landings = self._fetcher.wait()
        self._stats.wait_seconds += perf_counter() - begin
        self._settle(landings)
        for landing in landings:
            if landing.error is not None:
                raise landing.error
        self._left -= len(landings)
        for landing in landings:
            self._residency.hold(landing.load.slot)
        return [landing.load.index for landing in landings]

    def _settle(self, landings: Sequence[Landing]) -> None:
        for landing in landings:
            if landing.error is None:
                self._residency.landed(landing.load.slot)
                self._stats.bytes_read += landing.nbytes
            else:
                self._residency.drop(landing.load.slot)
