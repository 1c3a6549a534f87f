"""The governor on simulated machines: short of memory, noisy, with a peak below the budget."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashmoe.experts.governor import Decision, Governor, Reading, Reason, gains

MIB = 1 << 20
FLOOR, BUDGET, SLOT = 16, 800, 2 * MIB

Machine = Callable[[int, int], Reading]
"""(second, slots) -> what is measured there."""


def run(machine: Machine, seconds: int, floor: int = FLOOR, budget: int = BUDGET) -> list[int]:
    """The slots in use in each second."""
    governor, sizes = Governor(floor, budget, SLOT), []
    for second in range(seconds):
        governor.take(machine(second, governor.slots))
        sizes.append(governor.slots)
    return sizes


def noisy(speed: Callable[[int], float], noise: float, seed: int) -> Machine:
    """Tokens per second around `speed` of the slots; noise: standard deviation, relative."""
    rng = random.Random(seed)
    return lambda _, slots: Reading(max(0.1, speed(slots) * rng.gauss(1, noise)))


def rising(slots: int) -> float:
    return 5 + 10 * slots / BUDGET


def peak(slots: int) -> float:
    """Fastest at half the budget; at the budget 40 % slower."""
    return 10 - 4 * abs(slots - BUDGET / 2) / (BUDGET / 2)


# Rule 1: memory.

TROUBLES = [
    Reading(10.0, stalled=0.2),
    Reading(10.0, refaults=500),
    Reading(10.0, swapped=4096),
    Reading(10.0, room=-1),
    Reading(None, stalled=0.2),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_trouble_shrinks_at_once(trouble: Reading) -> None:
    governor = Governor(FLOOR, BUDGET, SLOT)
    assert governor.take(Reading(10.0)) is None
    assert governor.take(trouble) == Decision(BUDGET - BUDGET // 8, Reason.PRESSURE)


def test_what_is_short_is_given_back_in_one_go() -> None:
    governor = Governor(FLOOR, BUDGET, SLOT)
    governor.take(Reading(10.0, room=1 - 400 * SLOT))
    assert governor.slots == BUDGET - 400


def test_the_floor_is_kept() -> None:
    assert run(lambda *_: Reading(10.0, stalled=0.5), 60)[-1] == FLOOR


def test_pages_that_stay_swapped_out_are_not_new_trouble() -> None:
    sizes = run(lambda second, _: Reading(10.0, swapped=MIB if second >= 3 else 0), 10)
    assert set(sizes[4:8]) == {BUDGET - BUDGET // 8}


def test_when_calm_it_grows_back_to_the_budget() -> None:
    sizes = run(lambda second, _: Reading(10.0, stalled=0.3 if second < 4 else 0.0), 59)
    assert min(sizes) == BUDGET // 2
    assert sizes[-1] == BUDGET
    assert sizes[4:] == sorted(sizes[4:])


@pytest.mark.parametrize("free", [500, 790])
def test_a_neighbour_that_stays_is_not_asked_ever_again(free: int) -> None:
    """Memory for so many slots and no more: the tries become rare."""

    def machine(_: int, slots: int) -> Reading:
        return Reading(10.0, room=(free - slots) * SLOT)

    sizes = run(machine, 3000)
    assert [second for second, size in enumerate(sizes) if size > free] == []
    assert sizes[-1] >= free - BUDGET // 32


def test_memory_that_only_looks_free_is_not_asked_for_ever_again() -> None:
    """More than 500 slots stall, whatever is said to be free: the tries become rare."""
    sizes = run(lambda _, slots: Reading(10.0, stalled=0.1 if slots > 500 else 0.0), 3000)
    over = [second for second, size in enumerate(sizes) if size > 500]
    assert len([second for second in over if second > 1000]) <= 10
    assert sizes[-1] >= 500 - 2 * BUDGET // 8


@given(st.integers(0, BUDGET * SLOT), st.integers(0, 10**6))
def test_it_grows_only_into_memory_that_is_free(room: int, seed: int) -> None:
    """Back after pressure, and in trials of speed."""
    rng = random.Random(seed)
    governor = Governor(FLOOR, BUDGET, SLOT)
    governor.take(Reading(10.0, room=-400 * SLOT))
    for _ in range(300):
        before = governor.slots
        governor.take(Reading(rng.uniform(1, 10), room=room))
        assert (governor.slots - before) * SLOT <= room


readings = st.builds(
    Reading,
    st.none() | st.floats(0.01, 1e3),
    stalled=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    refaults=st.sampled_from([0.0, 0.0, 100.0]),
    swapped=st.integers(0, 3).map(lambda pages: 4096 * pages),
    room=st.sampled_from([2**62, 2**62, 0, -5 * SLOT, -(10**12)]),
)


@given(st.lists(readings, max_size=300), st.integers(1, 50), st.integers(0, 1000))
def test_always_between_floor_and_budget_and_every_decision_is_a_change(
    trace: list[Reading], floor: int, extra: int
) -> None:
    governor = Governor(floor, floor + extra, SLOT)
    slots = governor.slots
    for reading in trace:
        decision = governor.take(reading)
        assert floor <= governor.slots <= floor + extra
        assert (decision is None) == (governor.slots == slots)
        if reading.room < 0:
            assert governor.slots <= max(floor, slots - 1)
        slots = governor.slots


# Rule 2: speed.


def share_at(sizes: list[int], wanted: Callable[[int], bool]) -> float:
    return sum(map(wanted, sizes)) / len(sizes)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.03, 0.1, 0.3]))
@example(17063, 0.03)  # noise of more than three standard errors, twice in a row
def test_noise_does_not_make_it_wander(seed: int, noise: float) -> None:
    """Where more is faster, and where size does not matter: it stays at the budget."""
    for speed in (rising, lambda _: 10.0):
        sizes = run(noisy(speed, noise, seed), 2000)
        assert share_at(sizes, lambda size: size == BUDGET) > 0.9


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.02, 0.05]))
def test_it_finds_the_peak(seed: int, noise: float) -> None:
    sizes = run(noisy(peak, noise, seed), 4000)
    assert share_at(sizes[2000:], lambda size: abs(size - BUDGET / 2) <= BUDGET / 8) > 0.9


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([-1.0, 1.0]))
def test_a_load_that_drifts_is_not_a_gain(seed: int, sign: float) -> None:
    """Speed goes up or down by a half over ten minutes, whatever the size."""
    rng = random.Random(seed)

    def machine(second: int, _: int) -> Reading:
        return Reading(10 * (1 + sign * second / 1200) * rng.gauss(1, 0.02))

    assert share_at(run(machine, 600), lambda size: size == BUDGET) > 0.85


def test_prompts_are_not_compared() -> None:
    sizes = run(lambda *_: Reading(None), 1000)
    assert set(sizes) == {BUDGET}


def test_gains_needs_both_size_and_certainty() -> None:
    assert gains([10.0] * 5, [10.5] * 5)
    assert not gains([10.0] * 5, [10.2] * 5)
    assert not gains([5.0, 15.0, 5.0, 15.0], [11.0, 11.0, 11.0, 11.0])
    assert not gains([10.0] * 5, [9.0] * 5)
