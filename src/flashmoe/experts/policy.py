"""Which resident expert has to go first.

Pure Python and deterministic: the engine and the offline replay of a trace use the same code.
A policy knows only the experts that it was told of; what must not be evicted now is the
plan's business (see plan.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

Key = tuple[int, int]
"""(layer, expert)"""


class Policy(Protocol):
    """Order of eviction over all layers together."""

    def used(self, key: Key) -> None:
        """The expert was computed in the step that ends now (it may be new)."""

    def forget(self, key: Key) -> None:
        """The expert is no longer resident. Unknown keys are ignored."""

    def coldest(self) -> Iterator[Key]:
        """Every known expert, the first to evict first."""


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
