"""Which resident expert has to go first.

Pure Python and deterministic: the engine and the offline replay of a trace use the same code.
A policy knows only the experts that it was told of; what must not be evicted now is the
plan's business (see plan.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final, Protocol

Key = tuple[int, int]
"""(layer, expert)"""


class Policy(Protocol):
    """Order of eviction over all layers together."""

    def used(self, key: Key) -> None:
        """The expert was computed in the step that ends now (it may be new)."""

    def forget(self, key: Key) -> None:
        """The expert is no longer resident. Unknown keys are ignored."""

    def coldest(self) -> Iterator[Key]:
        """Every known expert, the first to evict first. Good until the next call of any method."""


class Lru:
    """Least recently used first."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()

    def used(self, key: Key) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def forget(self, key: Key) -> None:
        self._order.pop(key, None)

    def coldest(self) -> Iterator[Key]:
        return iter(self._order)


HALF_LIFE_TOKENS: Final = 8
"""Found by replay of traces, where 16 differ by less than a point of hits."""

Rank = tuple[float, int]


class Lfru:
    """Frequency that fades: each use counts 1 and loses half of it every `half_life` uses of
    any expert. A short half-life is Lru, an endless one Lfu. Counts outlive eviction.

    All counts fade alike, so the order of two experts changes only when one of them is used: the
    rank is log2 of the count, scaled back to the time of the first use. Ranks only rise. So the
    heap may hold old ones: an expert is put where it belongs when it comes up.
    """

    def __init__(self, half_life: float) -> None:
        assert half_life > 0, "a half-life must be positive"
        self._half_life, self._now = half_life, 0
        self._ranks: dict[Key, Rank] = {}
        self._known: set[Key] = set()
        # One entry for each of _listed, in the heap or (since the last coldest()) beside it.
        self._listed: set[Key] = set()
        self._heap: list[tuple[Rank, Key]] = []
        self._shown: list[tuple[Rank, Key]] = []

    def used(self, key: Key) -> None:
        self._now += 1
        rank = self._ranks.get(key)
        weight = self._now / self._half_life
        if rank is not None:
            weight = _log2_sum(rank[0], weight)
        self._ranks[key] = rank = (weight, self._now)
        self._known.add(key)
        if key not in self._listed:
            self._listed.add(key)
            heappush(self._heap, (rank, key))

    def forget(self, key: Key) -> None:
        self._known.discard(key)

    def coldest(self) -> Iterator[Key]:
        for entry in self._shown:
            heappush(self._heap, entry)
        self._shown.clear()
        while self._heap:
            rank, key = heappop(self._heap)
            if key not in self._known:
                self._listed.remove(key)
            elif rank != self._ranks[key]:
                heappush(self._heap, (self._ranks[key], key))
            else:
                self._shown.append((rank, key))
                yield key


def _log2_sum(a: float, b: float) -> float:
    """log2(2**a + 2**b), where a is not much larger than b."""
    return b + math.log2(1 + 2.0 ** (a - b))
