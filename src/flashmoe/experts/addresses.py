"""Where slots lie in memory, and where the experts are that can be computed at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flashmoe.experts.policy import Key
from flashmoe.ops.base import Ints

Addresses = NDArray[np.uint64]


class AddressBook:
    """Addresses of slots, and of resident experts in a table [num_experts] per layer.

    Args:
        places: address of every piece of memory that holds a record; the first `slots` are slots,
            the others are spare.
    """

    def __init__(self, places: range, slots: int, num_experts: int) -> None:
        assert 1 <= slots <= len(places)
        self._places, self._num_experts = places, num_experts
        self._slots = list(places[:slots])
        self._tables: dict[int, Addresses] = {}

    def of(self, slot: int) -> int:
        """The address of a slot now."""
        return self._slots[slot]

    def spare(self) -> list[int]:
        """Every address that is no slot's, in ascending order."""
        return sorted(set(self._places) - set(self._slots))

    def swap(self, slot: int, spare: int) -> int:
        """Give a slot other memory -> the address that it had, which is spare from now on."""
        old, self._slots[slot] = self._slots[slot], spare
        return old

    def resize(
        self, places: range, slots: int, renumbered: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int, int]]:
        """Lie in `places` from now on, with so many slots -> (slot, old address, new address).

        renumbered: (old, new) numbers of slots, new ones being free. Experts must be published
        again.
        """
        for old, new in renumbered:
            self._slots[old], self._slots[new] = self._slots[new], self._slots[old]
        kept, self._places = self._slots[:slots], places
        free = iter(sorted(set(places) - set(kept)))
        moves = [(slot, old, next(free)) for slot, old in enumerate(kept) if old not in places]
        for slot, _, new in moves:
            kept[slot] = new
        self._slots = [*kept, *islice(free, slots - len(kept))]
        return moves

    def publish(self, key: Key, slot: int) -> None:
        """The slot holds the expert's good record."""
        layer, expert = key
        if layer not in self._tables:
            self._tables[layer] = np.zeros(self._num_experts, dtype=np.uint64)
        self._tables[layer][expert] = self._slots[slot]

    def withdraw(self, key: Key) -> None:
        """The expert is no longer to be had."""
        layer, expert = key
        if layer in self._tables:
            self._tables[layer][expert] = 0

    def find(self, layer: int, experts: Ints) -> list[int] | None:
        """K addresses of experts int32 [K]; None unless all are resident."""
        table = self._tables.get(layer)
        if table is None:
            return None
        found: list[int] = table[experts].tolist()
        return None if 0 in found else found
