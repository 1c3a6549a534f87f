"""Decides which expert is read into which slot. No side effects: cache.py carries a plan out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from flashmoe.experts.policy import Key


class ResidencyView(Protocol):
    """What a plan has to know of the slots (residency.Residency is the real one)."""

    def slot_of(self, key: Key) -> int | None:
        """The slot that holds the expert, None if it is not resident."""

    def empty(self) -> Iterator[int]:
        """The empty slots, in the order in which to use them."""

    def coldest(self) -> Iterator[Key]:
        """Every resident expert, the first to evict first."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A wanted expert that is resident. index: its place in `wanted`."""

    index: int
    key: Key
    slot: int


@dataclass(frozen=True, slots=True)
class Load:
    """A wanted expert to be read.

    evicts: the expert that loses the slot, None for an empty slot.
    after: the index of the wanted expert whose computation must end before the slot may be
        overwritten (it is the one evicted); None if the read may start at once.
    """

    index: int
    key: Key
    slot: int
    evicts: Key | None
    after: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How every wanted expert is served, exactly once each."""

    hits: tuple[Hit, ...]
    loads: tuple[Load, ...]


_Place = tuple[int, Key | None, int | None]  # slot, evicts, after


def plan(wanted: Sequence[Key], residency: ResidencyView) -> Plan:
    """Serve `wanted`, the distinct experts of one layer in one step, in order of computation.

    Empty slots are taken first, then those of the coldest experts that are not wanted, then,
    when more is wanted than there are slots, those of wanted experts in order of computation.
    """
    assert len(set(wanted)) == len(wanted), "an expert is wanted twice"
    hits: list[Hit] = []
    missing: list[tuple[int, Key]] = []
    for index, key in enumerate(wanted):
        slot = residency.slot_of(key)
        if slot is None:
            missing.append((index, key))
        else:
            hits.append(Hit(index, key, slot))
    loads: list[Load] = []
    places = _places(set(wanted), hits, loads, residency)
    for index, key in missing:
        slot, evicts, after = next(places)
        loads.append(Load(index, key, slot, evicts, after))
    return Plan(tuple(hits), tuple(loads))


def _places(
    wanted: set[Key], hits: Sequence[Hit], loads: Sequence[Load], residency: ResidencyView
) -> Iterator[_Place]:
    """Slots to read into, best first. `loads` grows while this runs, so it does not end."""
    for slot in residency.empty():
        yield slot, None, None
    for key in residency.coldest():
        if key not in wanted:
            cold = residency.slot_of(key)
            assert cold is not None, "the policy knows an expert that is not resident"
            yield cold, key, None
    # Hits are computed first, loads in the order in which they were asked for.
    for earlier in hits:
        yield earlier.slot, earlier.key, earlier.index
    for load in loads:
        yield load.slot, load.key, load.index
