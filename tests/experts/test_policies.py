"""Orders of eviction, by hand and against slow definitions of the same."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.experts.policies import POLICIES, Lfu, RandomOrder, RankOrder, Slru
from flashmoe.experts.policy import Key, Lfru, Lru, Policy

A, B, C, D = (0, 1), (0, 2), (1, 0), (1, 1)
KEYS = (A, B, C, D)

# What happens to a policy: an expert is used, or (False) forgotten.
EVENTS = st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=60)


def order(policy: Policy, used: tuple[Key, ...]) -> list[Key]:
    for key in used:
        policy.used(key)
    return list(policy.coldest())


def test_lfu_goes_by_count_then_by_age() -> None:
    assert order(Lfu(), (A, A, B, C)) == [B, C, A]


def test_lfu_remembers_counts_of_the_evicted() -> None:
    policy = Lfu()
    assert order(policy, (A, A, B)) == [B, A]
    policy.forget(A)
    assert order(policy, (C, A)) == [B, C, A]


def test_lfru_forgets_old_use() -> None:
    # After two half-lives A's two uses weigh less than the one fresh use of D.
    assert order(Lfru(half_life=1), (A, A, B, C, D)) == [A, B, C, D]
    assert order(Lfru(half_life=100), (A, A, B, C, D)) == [B, C, D, A]


def test_slru_protects_what_was_used_twice() -> None:
    assert order(Slru(protected=2), (A, A, B, C)) == [B, C, A]


def test_slru_sends_the_oldest_protected_back() -> None:
    assert order(Slru(protected=1), (A, A, B, C, B)) == [C, A, B]


def test_random_order_is_repeatable_and_kept() -> None:
    first = order(RandomOrder(seed=3), KEYS)
    assert order(RandomOrder(seed=3), (*KEYS, A, B)) == first
    assert any(order(RandomOrder(seed), KEYS) != first for seed in range(9))


def test_rank_order_moves_and_removes() -> None:
    ranks = RankOrder()
    for key, rank in ((A, 2.0), (B, 1.0), (C, 3.0), (A, 4.0)):
        ranks.put(key, (rank, 0))
    ranks.remove(C)
    ranks.remove(D)
    assert list(ranks) == [B, A]
    assert A in ranks
    assert C not in ranks


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None)
@given(events=EVENTS)
def test_every_policy_knows_what_was_used_and_not_forgotten(
    name: str, events: list[tuple[Key, bool]]
) -> None:
    policy, known = POLICIES[name](4, 2), set[Key]()
    for key, used in events:
        if used:
            policy.used(key)
            known.add(key)
        else:
            policy.forget(key)
            known.discard(key)
        coldest = list(policy.coldest())
        assert len(coldest) == len(set(coldest))
        assert set(coldest) == known


@settings(deadline=None)
@given(st.lists(st.sampled_from(KEYS), max_size=60), st.floats(0.5, 50))
def test_lfru_ranks_by_faded_counts(uses: list[Key], half_life: float) -> None:
    faded = dict.fromkeys(uses, 0.0)
    for key in uses:
        faded = {k: count * 0.5 ** (1 / half_life) for k, count in faded.items()}
        faded[key] += 1
    found = order(Lfru(half_life), tuple(uses))
    counts = [faded[key] for key in found]
    # Counts that are equal but for rounding may come in either order.
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(counts))


@settings(deadline=None)
@given(st.lists(st.sampled_from(KEYS), max_size=60))
def test_a_short_half_life_is_lru(uses: list[Key]) -> None:
    assert order(Lfru(half_life=0.5), tuple(uses)) == order(Lru(), tuple(uses))


@settings(deadline=None)
@given(events=EVENTS, half_life=st.floats(0.5, 50), shown=st.integers(1, 4))
def test_lfru_is_not_changed_by_looking(
    events: list[tuple[Key, bool]], half_life: float, shown: int
) -> None:
    watched, left_alone = Lfru(half_life), Lfru(half_life)
    for key, used in events:
        for policy in (watched, left_alone):
            (policy.used if used else policy.forget)(key)
        list(islice(watched.coldest(), shown))
    assert list(watched.coldest()) == list(left_alone.coldest())
