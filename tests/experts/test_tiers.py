from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import MemoryBudgetError
from flashmoe.experts.budget import ExpertSizes
from flashmoe.experts.memory import Limit
from flashmoe.experts.tiers import DeviceSlots, HostRates, device_budget, waves


def used(slots: DeviceSlots, layer: int, *experts: int) -> list[int]:
    """Place and use experts -> those that had to be loaded."""
    placement = slots.place(layer, experts)
    slots.landed(layer, placement)
    assert sorted(placement.slots) == sorted(experts)
    assert len({*placement.slots.values()}) == len(experts)
    return sorted(placement.loads)


def test_an_expert_stays_until_its_slot_is_needed() -> None:
    slots = DeviceSlots(3)
    assert used(slots, 0, 4, 5) == [4, 5]
    assert used(slots, 0, 4, 5) == []
    assert used(slots, 1, 4) == [4]
    assert used(slots, 0, 5) == []
    assert used(slots, 2, 7) == [7]  # takes the place of (0, 4)
    assert used(slots, 0, 4, 5) == [4]


def test_hits_are_what_is_not_loaded() -> None:
    slots = DeviceSlots(3)
    used(slots, 0, 1)
    placement = slots.place(0, [1, 2])
    assert sorted(placement.hits) == [1]
    assert sorted(placement.loads) == [2]


def test_a_failed_load_leaves_an_empty_slot() -> None:
    slots = DeviceSlots(2)
    slots.abandon(slots.place(0, [1]))
    assert used(slots, 0, 1) == [1]


def test_vacated_slots_lose_their_experts() -> None:
    slots = DeviceSlots(4)
    used(slots, 0, 0, 1, 2, 3)
    slots.vacate(2)
    assert len(slots.residency.resident()) == 2


def test_waves_begin_with_what_is_there() -> None:
    assert list(waves([1, 2, 3, 4, 5], frozenset({4, 2}), 2)) == [[2, 4], [1, 3], [5]]


def test_the_budget_takes_what_is_left_and_no_more_than_there_is() -> None:
    sizes = ExpertSizes(slot_bytes=10, total=7, floor=2)
    assert device_budget(Limit(100, "--vram"), {"weights": 65}, sizes).slots == 3
    assert device_budget(Limit(1000, "--vram"), {"weights": 65}, sizes).slots == 7


def test_below_the_floor_the_sum_is_shown() -> None:
    sizes = ExpertSizes(slot_bytes=10, total=7, floor=4)
    with pytest.raises(
        MemoryBudgetError, match=r"(?s)does not fit the card.*weights.*Raise --vram"
    ):
        device_budget(Limit(100, "--vram"), {"weights": 65}, sizes)


def test_the_cpu_takes_what_makes_both_end_soonest() -> None:
    assert HostRates(copy=1.0, compute=1.0, call=0.0).on_host(8) == 4
    assert HostRates(copy=1.0, compute=3.0, call=0.0).on_host(8) == 2
    assert HostRates(copy=3.0, compute=1.0, call=0.0).on_host(1) == 1
    # A call of the CPU that takes longer than all the copies is not made.
    assert HostRates(copy=1.0, compute=0.1, call=9.0).on_host(8) == 0
    assert HostRates(copy=1.0, compute=0.1, call=0.0).on_host(0) == 0


@given(*[st.floats(0.01, 100.0)] * 3, st.integers(0, 16))
def test_a_share_of_the_cpu_is_never_slower_than_the_bus_alone(
    copy: float, compute: float, call: float, count: int
) -> None:
    rates = HostRates(copy, compute, call)
    share = rates.on_host(count)
    assert 0 <= share <= count
    assert (rates.saves(count) > 0) == (share > 0)
    if share:
        assert call + share * compute < count * copy
