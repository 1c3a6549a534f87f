"""Orders of eviction beside those of policy.py, behind the same protocol.

They exist to be compared by replay of a trace (flashmoe.bench.replay); the engine can run any of
them.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Final

from flashmoe.experts.policy import HALF_LIFE_TOKENS, Key, Lfru, Lru, Policy, Rank


class RankOrder:
    """Keys by rank, lowest first. A sorted list: for the thousands of experts of a cache, moving
    its tail costs less than a tree in Python."""

    def __init__(self) -> None:
        self._ranks: dict[Key, Rank] = {}
        self._order: list[tuple[Rank, Key]] = []

    def put(self, key: Key, rank: Rank) -> None:
        """Insert the key, or move it."""
        self.remove(key)
        self._ranks[key] = rank
        insort(self._order, (rank, key))

    def remove(self, key: Key) -> None:
        """Take the key out; unknown keys are ignored."""
        rank = self._ranks.pop(key, None)
        if rank is not None:
            del self._order[bisect_left(self._order, (rank, key))]

    def __contains__(self, key: Key) -> bool:
        return key in self._ranks

    def __iter__(self) -> Iterator[Key]:
        return (key for _, key in self._order)


class Lfu:
    """Least frequently used first; of equals the least recently used. Counts outlive eviction."""

    def __init__(self) -> None:
        self._counts: dict[Key, int] = {}
        self._order, self._now = RankOrder(), 0

    def used(self, key: Key) -> None:
        self._now += 1
        self._counts[key] = self._counts.get(key, 0) + 1
        self._order.put(key, (self._counts[key], self._now))

    def forget(self, key: Key) -> None:
        self._order.remove(key)

    def coldest(self) -> Iterator[Key]:
        return iter(self._order)


class Slru:
    """Segmented Lru: an expert is on probation until its second use, then protected. What
    is protected beyond `protected` experts goes back on probation, as the most recent there."""

    def __init__(self, protected: int) -> None:
        assert protected >= 1, "the protected segment needs room"
        self._limit = protected
        self._probation: OrderedDict[Key, None] = OrderedDict()
        self._protected: OrderedDict[Key, None] = OrderedDict()

    def used(self, key: Key) -> None:
        if key not in self._probation and key not in self._protected:
            self._probation[key] = None
            return
        self._probation.pop(key, None)
        self._protected[key] = None
        self._protected.move_to_end(key)
        if len(self._protected) > self._limit:
            demoted, _ = self._protected.popitem(last=False)
            self._probation[demoted] = None

    def forget(self, key: Key) -> None:
        self._probation.pop(key, None)
        self._protected.pop(key, None)

    def coldest(self) -> Iterator[Key]:
        return chain(self._probation, self._protected)


class RandomOrder:
    """A random place on arrival, kept until eviction. Seeded: runs repeat."""

    def __init__(self, seed: int = 0) -> None:
        self._random, self._order = random.Random(seed), RankOrder()

    def used(self, key: Key) -> None:
        if key not in self._order:
            self._order.put(key, (self._random.random(), 0))

    def forget(self, key: Key) -> None:
        self._order.remove(key)

    def coldest(self) -> Iterator[Key]:
        return iter(self._order)


POLICIES: Final[Mapping[str, Callable[[int, float], Policy]]] = {
    "lru": lambda slots, uses: Lru(),
    "lfu": lambda slots, uses: Lfu(),
    "lfru": lambda slots, uses: Lfru(HALF_LIFE_TOKENS * uses),
    "slru": lambda slots, uses: Slru(protected=max(1, slots // 2)),
    "random": lambda slots, uses: RandomOrder(),
}
"""A fresh policy by name, for a cache of so many slots and a model with so many uses per token."""
