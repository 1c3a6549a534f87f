"""Where slots lie in memory, and where the experts are that can be computed at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.experts.policy import Key
from flashmoe.ops.base import Ints

Addresses = NDArray[np.uint64]


class AddressBook:
    """Addresses of slots, and of resident experts.

    Args:
        table: of resident experts; others only take the uses that it notes.
        places: address of every piece of memory that holds a record; the first `slots` are slots,
            the others are spare.
    """

    def __init__(self, places: range, slots: int, table: _native.ResidentTable) -> None:
        assert 1 <= slots <= len(places)
        self._places, self._table = places, table
        self._slots = list(places[:slots])
        self._ids: Ints | None = None

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
        self._table.put(*key, self._slots[slot])

    def withdraw(self, key: Key) -> None:
        """The expert is no longer to be had."""
        self._table.put(*key, 0)

    def find(self, layer: int, ids: Ints) -> Addresses | None:
        """K addresses of experts int32 [1, K], good until the next call, and their uses noted in
        the table; None, and nothing noted, unless all are resident."""
        if ids is not self._ids:  # a router writes into the same array in every layer
            self._ids, self._found = ids, np.zeros(ids.shape[1], dtype=np.uint64)
            self._lookup = _native.Lookup(ids, self._found)
        return self._found if self._table.find(layer, self._lookup) else None
