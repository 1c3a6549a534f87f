"""Replays whose hits were counted by hand, and laws that hold for every trace."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.bench.replay import NAMES, OPTIMUM, replay, replay_all
from flashmoe.bench.traces import Trace, Visit
from flashmoe.errors import UsageError

EXPERTS, LAYERS = 5, 2


def trace_of(*visits: Visit, sizes: dict[int, int] | None = None) -> Trace:
    tokens = sum(visit.decode and visit.layer == visits[0].layer for visit in visits)
    return Trace("by hand", visits, EXPERTS, sizes or {}, tokens)


def one_layer(*asked: tuple[int, ...]) -> Trace:
    return trace_of(*(Visit(0, experts, decode=True) for experts in asked))


def singles(text: str) -> Trace:
    return one_layer(*((int(expert),) for expert in text))


# Two slots. 0 1 2 fill and evict: lru has {1, 2}, belady sees 0 again first and has {0, 2}.
@pytest.mark.parametrize(
    ("policy", "hits"),
    [
        # 0 1 | 2>0: 12 | 0>1: 20 | 0 hit | 1>2: 01 | 0 hit
        ("lru", 2),
        # 0 1 | 2>0: 12 | 0>1 (both once, 1 older): 20 | 0 hit | 1>2: 01 | 0 hit
        ("lfu", 2),
        # 0 1 | 2>1: 02 | 0 hit | 0 hit | 1>2: 01 | 0 hit
        (OPTIMUM, 3),
    ],
)
def test_hits_by_hand(policy: str, hits: int) -> None:
    found = replay(singles("0120010"), slots=2, name=policy)
    assert (found.hits, found.misses, found.first_uses) == (hits, 7 - hits, 3)
    assert found.hit_rate == hits / 7


def test_a_cycle_just_larger_than_the_cache_defeats_lru_only() -> None:
    trace = singles("012" * 4)
    assert replay(trace, 2, "lru").hits == 0
    # After 0 1 2: keep one of the three for its next turn, every other use hits.
    assert replay(trace, 2, OPTIMUM).hits == 4 + 1


def test_frequency_pays_where_one_expert_returns() -> None:
    # 0 is used twice, then 1 2 3 pass by: lfu and slru keep it, lru does not.
    trace = singles("001230")
    assert replay(trace, 2, "lfu").hits == 2
    assert replay(trace, 2, "slru").hits == 2
    assert replay(trace, 2, "lru").hits == 1


def test_what_a_visit_asks_for_together_is_not_evicted_by_it() -> None:
    # The miss on 2 must not take the slot of 0, which is older but wanted.
    trace = one_layer((0, 1), (0, 2), (0, 2))
    assert replay(trace, 2, "lru").hits == 1 + 2


def test_layers_share_one_pool_but_not_their_experts() -> None:
    visits = [Visit(layer, (3,), decode=True) for layer in (0, 1, 0, 1)]
    assert replay(trace_of(*visits), 2, "lru").hits == 2
    assert replay(trace_of(*visits), 1, "lru").hits == 0


def test_prefill_fills_the_cache_and_does_not_count() -> None:
    visits = Visit(0, (1, 2), decode=False), Visit(0, (1, 3), decode=True)
    found = replay(trace_of(*visits, sizes={0: 100}), 3, "lru")
    assert (found.hits, found.misses, found.first_uses) == (1, 1, 1)
    assert found.bytes_per_token == 100


def test_bytes_are_those_of_each_layer() -> None:
    visits = [Visit(layer, (1, 2), decode=True) for layer in (0, 1, 0, 1)]
    found = replay(trace_of(*visits, sizes={0: 100, 1: 1000}), 4, "lru")
    assert found.bytes_per_token == (2 * 100 + 2 * 1000) / 2
    assert replay(trace_of(*visits), 4, "lru").bytes_per_token is None


def test_the_share_is_of_all_experts() -> None:
    visits = [Visit(layer, (1,), decode=True) for layer in (0, 1)]
    found = replay(trace_of(*visits), 5, "lru")
    assert found.share == 0.5
    assert found.row()["hit_rate"] == 0.0


def test_too_few_slots() -> None:
    with pytest.raises(UsageError, match=r"at least 2 slots.*got 1"):
        replay(one_layer((0, 1)), 1, "lru")


def test_unknown_policy() -> None:
    with pytest.raises(UsageError, match=r"lru \| lfu"):
        replay(singles("0"), 1, "fifo")


def test_a_trace_without_decode() -> None:
    with pytest.raises(UsageError, match="no token is decoded"):
        replay(trace_of(Visit(0, (1,), decode=False)), 1, "lru")


def test_all_policies_and_sizes() -> None:
    found = [(r.slots, r.policy) for r in replay_all(singles("0120"), [1, 3])]
    assert found == [(slots, name) for slots in (1, 3) for name in NAMES]


def visits_of(width: int) -> st.SearchStrategy[list[Visit]]:
    experts = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=width, unique=True)
    visit = st.builds(
        Visit, st.integers(0, LAYERS - 1), experts.map(lambda e: tuple(sorted(e))), st.just(True)
    )
    return st.lists(visit, min_size=1, max_size=25)


@settings(deadline=None)
@given(visits_of(width=3), st.integers(3, 7))
def test_no_policy_beats_belady(visits: list[Visit], slots: int) -> None:
    replays = {found.policy: found for found in replay_all(trace_of(*visits), [slots])}
    best = replays[OPTIMUM]
    assert all(best.hits >= found.hits for found in replays.values())
    assert best.misses >= best.first_uses


@settings(deadline=None)
@given(visits_of(width=2).map(lambda visits: visits[:8]), st.integers(2, 4))
def test_belady_is_the_optimum(visits: list[Visit], slots: int) -> None:
    """Against every choice of evictions there is."""
    assert replay(trace_of(*visits), slots, OPTIMUM).misses == fewest_misses(visits, slots)


def fewest_misses(visits: list[Visit], slots: int) -> int:
    """Misses of the best choice, by trying all: {what is resident: fewest misses so far}."""
    reached: dict[frozenset[tuple[int, int]], int] = {frozenset(): 0}
    for visit in visits:
        wanted = frozenset((visit.layer, expert) for expert in visit.experts)
        following: dict[frozenset[tuple[int, int]], int] = {}
        for resident, misses in reached.items():
            others = resident - wanted
            for kept in combinations(sorted(others), min(len(others), slots - len(wanted))):
                state, total = wanted | frozenset(kept), misses + len(wanted - resident)
                following[state] = min(total, following.get(state, total))
        reached = following
    return min(reached.values())


@settings(deadline=None)
@given(visits_of(width=3))
def test_a_cache_for_everything_misses_first_uses_only(visits: list[Visit]) -> None:
    for found in replay_all(trace_of(*visits), [EXPERTS * LAYERS]):
        assert found.misses == found.first_uses
