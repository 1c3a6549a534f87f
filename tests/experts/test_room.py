"""What a prompt borrows: the chunk that reads least, and slots that go and come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.room import CHUNK_STEP, LONGEST_CHUNK, CacheSize, PromptCosts

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# Near the shape of a 30B model: 48 layers of 128 experts of 2.5 MiB, 220 KiB of scratch per token.
COSTS = PromptCosts(
    scratch_per_token=220 * KIB,
    spare=0,
    slot_bytes=5 * MIB // 2,
    layers=48,
    num_experts=128,
    num_experts_per_tok=8,
    floor=16,
)


def test_a_long_prompt_borrows_for_one_pass() -> None:
    assert COSTS.chunk(2000, slots=1000) == 2048
    assert COSTS.lent(2048) == -(-220 * KIB * (2048 - 64) // (5 * MIB // 2))


def test_a_short_prompt_borrows_nothing() -> None:
    assert COSTS.chunk(50, slots=1000) == CHUNK_STEP
    assert COSTS.lent(CHUNK_STEP) == 0


def test_what_is_left_over_is_used_first() -> None:
    roomy = replace(COSTS, spare=GIB)
    assert roomy.lent(4096) == 0
    assert roomy.chunk(4000, slots=48 * 128) == 4032


def test_everything_in_memory_is_not_thrown_out() -> None:
    """Reading what was lent costs; passes over what is in memory do not."""
    chunk = COSTS.chunk(4096, slots=48 * 128)
    assert COSTS.lent(chunk) == 0


def test_all_means_all() -> None:
    assert replace(COSTS, lendable=False).chunk(4096, slots=1000) == CHUNK_STEP


def test_there_is_a_longest_chunk() -> None:
    assert COSTS.chunk(100_000, slots=6000) <= LONGEST_CHUNK


@given(
    st.builds(
        PromptCosts,
        scratch_per_token=st.integers(1, MIB),
        spare=st.integers(0, 4 * GIB),
        slot_bytes=st.integers(1, 4096).map(lambda pages: 4096 * pages),
        layers=st.integers(1, 100),
        num_experts=st.integers(8, 512),
        num_experts_per_tok=st.integers(1, 8),
        floor=st.integers(1, 20),
        lendable=st.booleans(),
    ),
    st.integers(1, 20_000),
    st.integers(20, 50_000),
)
def test_the_choice_fits_and_none_that_fits_reads_less(
    costs: PromptCosts, tokens: int, slots: int
) -> None:
    best = costs.chunk(tokens, slots)
    assert best % CHUNK_STEP == 0
    assert costs.lent(best) <= (slots - costs.floor if costs.lendable else 0)
    assert costs.scratch_per_token * (best - CHUNK_STEP) <= (
        costs.spare + costs.lent(best) * costs.slot_bytes
    )
    least = costs.read_bytes(tokens, best, slots)
    for other in range(CHUNK_STEP, min(tokens, LONGEST_CHUNK) + 1, CHUNK_STEP):
        if costs.lent(other) <= (slots - costs.floor if costs.lendable else 0):
            assert costs.read_bytes(tokens, other, slots) >= least


class FakeCache(ExpertCache):
    def __init__(self, slots: int) -> None:
        self.slot_bytes, self.sizes = 4096, [slots]

    @property
    def slots(self) -> int:
        return self.sizes[-1]

    def resize(self, slots: int) -> None:
        self.sizes.append(slots)


def test_a_loan_comes_back_after_what_took_its_place_is_gone() -> None:
    cache = FakeCache(100)
    size = CacheSize(cache, 10, lambda: cache.sizes.append(-cache.slots))
    with size.lend(30):
        assert cache.slots == 70
    assert cache.sizes == [100, 70, -70, 100]


def test_pressure_during_a_loan() -> None:
    cache = FakeCache(100)
    size = CacheSize(cache, 10, lambda: None)
    with size.lend(30):
        size.resize(60)
        assert (size.slots, cache.slots) == (60, 30)
        size.resize(35)
        assert cache.slots == 10
    assert cache.slots == 35


def test_a_loan_comes_back_after_an_error() -> None:
    cache = FakeCache(100)
    with pytest.raises(ZeroDivisionError), CacheSize(cache, 10, lambda: None).lend(30):
        raise ZeroDivisionError
    assert cache.slots == 100
