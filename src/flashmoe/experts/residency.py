"""Which expert is in which slot, and what may be done with the slot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import islice

from flashmoe.experts.plan import Load
from flashmoe.experts.policy import Key, Policy


class SlotState(Enum):
    """EMPTY -> LOADING -> READY; READY -> LOADING when another expert takes the slot."""

    EMPTY = "empty"
    LOADING = "loading"  # a read may write into it at any moment
    READY = "ready"  # holds a good record


class Residency:
    """The slots of a cache. Every change is one of the transitions of SlotState.

    take_uses: hands over uses of resident experts that were noted elsewhere, each once.
    """

    def __init__(
        self, slots: int, policy: Policy, take_uses: Callable[[], Iterable[Key]] = tuple
    ) -> None:
        assert slots >= 1, "a cache needs a slot"
        self._policy, self._take_uses = policy, take_uses
        self._states = [SlotState.EMPTY] * slots
        self._keys: list[Key | None] = [None] * slots
        self._slots: dict[Key, int] = {}
        self._empty: OrderedDict[int, None] = OrderedDict.fromkeys(range(slots))

    @property
    def slots(self) -> int:
        return len(self._states)

    def state(self, slot: int) -> SlotState:
        return self._states[slot]

    def slot_of(self, key: Key) -> int | None:
        """The slot with the expert's good record, None if there is none (yet)."""
        slot = self._slots.get(key)
        return None if slot is None or self._states[slot] is SlotState.LOADING else slot

    def empty(self) -> Iterator[int]:
        return iter(self._empty)

    def coldest(self) -> Iterator[Key]:
        self.tell_uses()
        return self._policy.coldest()

    def resident(self) -> frozenset[Key]:
        """Every expert with a good record."""
        return frozenset(key for key in self._slots if self.slot_of(key) is not None)

    def start(self, load: Load) -> None:
        """EMPTY or READY -> LOADING: the slot's expert, if any, is gone."""
        self.tell_uses()
        if load.evicts is None:
            assert self._states[load.slot] is SlotState.EMPTY
            del self._empty[load.slot]
        else:
            assert self._states[load.slot] is SlotState.READY
            assert self._keys[load.slot] == load.evicts
            del self._slots[load.evicts]
            self._policy.forget(load.evicts)
        self._states[load.slot] = SlotState.LOADING
        self._keys[load.slot] = load.key
        self._slots[load.key] = load.slot

    def landed(self, slot: int) -> None:
        """LOADING -> READY."""
        assert self._states[slot] is SlotState.LOADING, f"slot {slot}: {self._states[slot]}"
        self._states[slot] = SlotState.READY

    def drop(self, slot: int) -> None:
        """LOADING or READY -> EMPTY."""
        self.tell_uses()
        assert self._states[slot] in (SlotState.LOADING, SlotState.READY)
        key = self._keys[slot]
        assert key is not None
        del self._slots[key]
        self._policy.forget(key)
        self._states[slot], self._keys[slot] = SlotState.EMPTY, None
        self._empty[slot] = None

    def items(self) -> list[tuple[Key, int]]:
        """Every expert with a good record, and its slot."""
        return [(key, slot) for key, slot in self._slots.items() if self.slot_of(key) is not None]

    def surplus(self, slots: int) -> list[Key]:
        """The coldest experts, those that have to go before there are only so many slots."""
        return list(islice(self.coldest(), max(0, len(self._slots) - slots)))

    def resize(self, slots: int) -> list[tuple[int, int]]:
        """Use slots 0 to slots - 1 from now on -> (old, new) of the experts in other slots.

        Nothing may be LOADING, and no more experts be resident than there will be slots.
        """
        assert SlotState.LOADING not in self._states, "a step is under way"
        assert 1 <= slots >= len(self._slots), "a cache needs a slot for every expert"
        moves = self._move_down(slots)
        for slot in range(slots, self.slots):
            del self._empty[slot]
        self._empty |= dict.fromkeys(range(self.slots, slots))
        added = max(0, slots - self.slots)
        self._states = self._states[:slots] + [SlotState.EMPTY] * added
        self._keys = self._keys[:slots] + [None] * added
        return moves

    def _move_down(self, slots: int) -> list[tuple[int, int]]:
        places = iter([slot for slot in self._empty if slot < slots])
        high = [slot for slot in range(slots, self.slots) if self._keys[slot] is not None]
        moves = [(slot, next(places)) for slot in high]
        for old, new in moves:
            key = self._keys[old]
            assert key is not None
            self._keys[old], self._keys[new] = None, key
            self._states[old], self._states[new] = SlotState.EMPTY, SlotState.READY
            self._slots[key] = new
            del self._empty[new]
            self._empty[old] = None
        return moves

    def used(self, keys: Iterable[Key]) -> None:
        """Tell the policy what a step has computed, in that order."""
        self.tell_uses()
        for key in keys:
            if self.slot_of(key) is not None:
                self._policy.used(key)

    def tell_uses(self) -> None:
        """Tell the policy of the uses noted so far. Must run before anything else tells it."""
        for key in self._take_uses():
            self._policy.used(key)
