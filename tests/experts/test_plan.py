"""Plans keep their promises for every residency, and LRU equals a model written another way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashmoe.experts.plan import Hit, Load, Plan, plan
from flashmoe.experts.policy import Key, Lru
from flashmoe.experts.residency import Residency, SlotState

steps = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), unique=True)),
    min_size=1,
    max_size=12,
)


def carry_out(decided: Plan, residency: Residency) -> list[Key]:
    """Apply a plan as the cache does, in order; returns the keys in order of computation."""
    computed = []
    for hit in decided.hits:
        computed.append(hit.key)
    for load in decided.loads:
        residency.start(load)
        residency.landed(load.slot)
        computed.append(load.key)
    return computed


def play(slots: int, trace: list[tuple[int, list[int]]]) -> Residency:
    residency = Residency(slots, Lru())
    for layer, ids in trace:
        wanted = [(layer, expert) for expert in ids]
        carry_out(plan(wanted, residency), residency)
        residency.used(wanted)
    return residency


@given(st.integers(1, 12), steps)
def test_every_wanted_expert_is_served_once(slots: int, trace: list[tuple[int, list[int]]]) -> None:
    residency = play(slots, trace[:-1])
    wanted = [(trace[-1][0], expert) for expert in trace[-1][1]]
    decided = plan(wanted, residency)
    served = [(place.index, place.key) for place in decided.hits]
    served += [(place.index, place.key) for place in decided.loads]
    assert sorted(served) == list(enumerate(wanted))
    assert {hit.key for hit in decided.hits} == set(wanted) & residency.resident()


@given(st.integers(1, 12), steps)
def test_slots_are_free_when_they_are_reused(
    slots: int, trace: list[tuple[int, list[int]]]
) -> None:
    residency = play(slots, trace[:-1])
    wanted = [(trace[-1][0], expert) for expert in trace[-1][1]]
    decided = plan(wanted, residency)
    holder = {residency.slot_of(key): key for key in residency.resident()}
    computed = [hit.index for hit in decided.hits]
    for load in decided.loads:
        assert 0 <= load.slot < slots
        assert holder.get(load.slot) == load.evicts
        # A wanted expert loses its slot only after it was computed, any other at once.
        assert (load.evicts in wanted) == (load.after is not None)
        if load.after is not None:
            assert wanted[load.after] == load.evicts
            assert load.after in computed
        holder[load.slot] = load.key
        computed.append(load.index)
    assert len(set(holder.values())) == len(holder) <= slots


@given(st.integers(1, 12), steps)
def test_a_slot_waits_for_one_expert_at_most_and_only_when_needed(
    slots: int, trace: list[tuple[int, list[int]]]
) -> None:
    residency = play(slots, trace[:-1])
    wanted = [(trace[-1][0], expert) for expert in trace[-1][1]]
    waited = [load.after for load in plan(wanted, residency).loads if load.after is not None]
    assert len(set(waited)) == len(waited)
    assert len(waited) == max(0, len(wanted) - slots)


@given(st.integers(1, 12), steps)
def test_lru_equals_a_simple_model(slots: int, trace: list[tuple[int, list[int]]]) -> None:
    recent: list[Key] = []  # the oldest first
    for layer, ids in trace:
        wanted = [(layer, expert) for expert in ids]
        if len(wanted) > slots:
            return
        others = [key for key in recent if key not in wanted]
        recent = others[max(0, len(others) + len(wanted) - slots) :] + wanted
    # The model evicts only for want of room, and wanted experts that were resident need none.
    assert play(slots, trace).resident() == set(recent)


@given(st.integers(1, 12), steps)
def test_planning_changes_nothing(slots: int, trace: list[tuple[int, list[int]]]) -> None:
    residency = play(slots, trace[:-1])
    before = [residency.state(slot) for slot in range(slots)], residency.resident()
    wanted = [(trace[-1][0], expert) for expert in trace[-1][1]]
    assert plan(wanted, residency) == plan(wanted, residency)
    assert ([residency.state(slot) for slot in range(slots)], residency.resident()) == before


def test_a_plan_by_hand() -> None:
    residency = play(3, [(0, [1, 2, 3])])
    decided = plan([(0, 3), (0, 4), (0, 5), (0, 6)], residency)
    assert decided.hits == (Hit(0, (0, 3), 2),)
    assert decided.loads == (
        Load(1, (0, 4), 0, evicts=(0, 1), after=None),
        Load(2, (0, 5), 1, evicts=(0, 2), after=None),
        Load(3, (0, 6), 2, evicts=(0, 3), after=0),
    )


def test_one_slot_serves_any_number_in_a_chain() -> None:
    decided = plan([(0, expert) for expert in range(4)], Residency(1, Lru()))
    assert [load.after for load in decided.loads] == [None, 0, 1, 2]


def test_a_record_that_is_still_being_read_is_not_a_hit() -> None:
    residency = Residency(2, Lru())
    residency.start(Load(0, (0, 7), 0, evicts=None, after=None))
    assert residency.state(0) is SlotState.LOADING
    assert residency.slot_of((0, 7)) is None
    assert residency.resident() == frozenset()


def test_lru_forgets_and_reorders() -> None:
    policy = Lru()
    for expert in (1, 2, 3, 1):
        policy.used((0, expert))
    policy.forget((0, 2))
    policy.forget((9, 9))
    assert list(policy.coldest()) == [(0, 3), (0, 1)]
