"""The memory sum: every rule at its boundary, and the sum shown when it does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import MemoryBudgetError, UsageError
from flashmoe.experts.budget import (
    Budget,
    CacheSize,
    ExpertSizes,
    make_budget,
    memory_limit,
    parse_cache,
    swap_warning,
)
from flashmoe.experts.memory import Limit, SystemMemory

MIB = 1 << 20
SIZES = ExpertSizes(slot_bytes=2 * MIB, total=100, floor=10)
PARTS = {"resident weights": 50 * MIB, "KV cache": 30 * MIB}


def budget(limit_mib: int, cache: CacheSize = "auto") -> Budget:
    return make_budget(Limit(limit_mib * MIB, "--ram"), PARTS, SIZES, cache)


@pytest.mark.parametrize(
    ("limit_mib", "cache", "slots"),
    [
        (100, "auto", 10),
        (103, "auto", 11),
        (279, "auto", 99),
        (280, "auto", 100),
        (9999, "auto", 100),
        (280, "all", 100),
        (100, 0, 10),
        (9999, 0, 10),
        (9999, 20 * MIB, 10),
        (9999, 43 * MIB, 21),
        (9999, 900 * MIB, 100),
    ],
)
def test_slots(limit_mib: int, cache: CacheSize, slots: int) -> None:
    fixed = budget(limit_mib, cache)
    assert fixed.slots == slots
    assert fixed.cache_bytes == slots * 2 * MIB
    assert fixed.total == 80 * MIB + fixed.cache_bytes
    assert fixed.keep == (cache != 0)


@pytest.mark.parametrize(
    ("limit_mib", "cache"), [(99, "auto"), (99, 0), (279, "all"), (121, 42 * MIB), (10, "auto")]
)
def test_over_the_limit(limit_mib: int, cache: CacheSize) -> None:
    with pytest.raises(MemoryBudgetError, match=rf"at most {limit_mib}.0 MiB \(--ram\)"):
        budget(limit_mib, cache)


def test_the_refusal_shows_the_sum() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        budget(99)
    assert str(caught.value).splitlines() == [
        "the model does not fit the memory limit; expected at most 99.0 MiB (--ram), "
        "got 100.0 MiB. The sum:",
        "  resident weights                      50.0 MiB",
        "  KV cache                              30.0 MiB",
        "  expert cache (10 slots of 2.0 MiB)    20.0 MiB",
        "  total                                100.0 MiB",
        "  limit: --ram                          99.0 MiB",
        "That cache is the least that one step needs: raise --ram or shorten the context",
    ]


def test_the_refusal_of_a_large_cache_says_what_to_do() -> None:
    with pytest.raises(MemoryBudgetError, match="smaller --cache"):
        budget(150, "all")


def test_a_cache_under_the_floor_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--cache: .* at least 20.0 MiB \(10 experts\)"):
        budget(9999, 19 * MIB)


def test_the_floor_is_never_more_than_all_experts() -> None:
    few = ExpertSizes(slot_bytes=MIB, total=4, floor=10)
    assert make_budget(Limit(100 * MIB, "--ram"), {}, few, 0).slots == 4


@given(st.integers(0, 400), st.one_of(st.sampled_from(["auto", "all"]), st.integers(0, 300 * MIB)))
def test_what_is_granted_fits(limit_mib: int, cache: CacheSize) -> None:
    try:
        fixed = budget(limit_mib, cache)
    except (MemoryBudgetError, UsageError):
        return
    assert fixed.total <= limit_mib * MIB
    assert 10 <= fixed.slots <= 100


@pytest.mark.parametrize(
    ("text", "cache"),
    [("auto", "auto"), ("all", "all"), ("0", 0), ("25%", 50 * MIB), ("40MiB", 40 * MIB)],
)
def test_parse_cache(text: str, cache: CacheSize) -> None:
    assert parse_cache(text, SIZES) == cache


def test_parse_cache_refuses_nonsense() -> None:
    with pytest.raises(UsageError, match="--cache: not a size"):
        parse_cache("much", SIZES)


@pytest.mark.parametrize(
    ("cgroup", "ram", "nbytes", "origin"),
    [
        (None, 500, 500, "--ram"),
        (None, 5000, 1000, "physical memory"),
        (300, 500, 300, "cgroup"),
        (700, 500, 500, "--ram"),
        (None, None, 450, "90% of available memory; set --ram for more"),
        (300, None, 300, "cgroup"),
    ],
)
def test_memory_limit(cgroup: int | None, ram: int | None, nbytes: int, origin: str) -> None:
    group = None if cgroup is None else Limit(cgroup, "cgroup")
    system = SystemMemory(physical=1000, available=400, process=100, cgroup=group)
    assert memory_limit(system, ram) == Limit(nbytes, origin)


def test_swap_is_warned_of_only_where_it_may_be_used() -> None:
    budget = Budget(Limit(100, "--ram"), {"resident weights": 60}, 10, 2, keep=True)

    def warning(available: int, swap: int) -> str | None:
        return swap_warning(SystemMemory(200, available, 10, None, swap), budget)

    assert warning(available=70, swap=1) is None  # 80 are needed, 70 + 10 are there
    assert warning(available=0, swap=0) is None
    text = warning(available=69, swap=1)
    assert text is not None
    assert "80 bytes" in text
    assert "79 bytes" in text
    assert "--lock" in text
