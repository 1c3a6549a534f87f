"""The best that any order of eviction can do: evict what is needed again latest.

It has to know the future, so only a replay can use it. Best among caches that hold whatever a visit
asks for until its end, as the engine's does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from flashmoe.bench.traces import Visit
from flashmoe.experts.policies import RankOrder
from flashmoe.experts.policy import Key


class Belady:
    """flashmoe.experts.policy.Policy for exactly these visits, in this order."""

    def __init__(self, visits: Sequence[Visit]) -> None:
        self._future: dict[Key, deque[int]] = {}
        for time, visit in enumerate(visits):
            for expert in visit.experts:
                self._future.setdefault((visit.layer, expert), deque()).append(time)
        self._order = RankOrder()

    def used(self, key: Key) -> None:
        future = self._future[key]
        future.popleft()
        self._order.put(key, (-(future[0] if future else math.inf), 0))

    def passed(self, key: Key) -> None:
        """The expert was computed, and evicted by its own visit."""
        self._future[key].popleft()

    def forget(self, key: Key) -> None:
        self._order.remove(key)

    def coldest(self) -> Iterator[Key]:
        return iter(self._order)
