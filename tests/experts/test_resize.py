"""A cache that changes its size between steps serves the same bytes and keeps what is hot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe._native import Arena
from flashmoe.errors import StorageError
from flashmoe.experts.cache import ExpertCache
from tests.experts.support import RECORD, TaggedSource, arena, consume, run
from tests.support.fake_reader import FakeReader

LAYERS, EXPERTS, CAPACITY = 2, 8, 12

steps = st.lists(
    st.tuples(
        st.integers(0, LAYERS - 1),
        st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS),
        st.integers(1, CAPACITY),
    ),
    max_size=10,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TaggedSource:
    return TaggedSource(tmp_path_factory.mktemp("experts"), LAYERS, EXPERTS).write()


def make_cache(source: TaggedSource) -> ExpertCache:
    return ExpertCache(source, arena(CAPACITY), FakeReader(1), slot_bytes=RECORD)


@settings(deadline=None)
@given(steps)
def test_right_bytes_whatever_the_sizes(
    source: TaggedSource, steps: list[tuple[int, list[int], int]]
) -> None:
    cache = make_cache(source)
    for layer, ids, slots in steps:
        resident = len(cache.resident())
        cache.resize(slots)
        assert cache.slots == slots
        assert len(cache.resident()) == min(resident, slots)
        wanted = [source.record(layer, expert) for expert in ids]
        assert consume(cache.begin(layer, ids), len(ids)) == wanted


def test_the_hottest_stay(source: TaggedSource) -> None:
    cache = make_cache(source)
    run(cache, [(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (0, [1])])
    cache.resize(3)
    assert cache.resident() == {(1, 2), (1, 3), (0, 1)}
    misses = cache.stats.misses
    assert run(cache, [(1, [2, 3]), (0, [1])]) == [
        [source.record(1, 2), source.record(1, 3)],
        [source.record(0, 1)],
    ]
    assert cache.stats.misses == misses


def test_memory_goes_back_to_the_system_and_comes_again(source: TaggedSource) -> None:
    memory = arena(CAPACITY)
    cache = ExpertCache(source, memory, FakeReader(1), slot_bytes=RECORD)
    run(cache, [(0, list(range(8))), (1, list(range(4)))])
    cache.resize(5)
    assert not memory.view(5 * RECORD, 7 * RECORD).any()
    assert memory.view(0, 5 * RECORD).reshape(5, RECORD).any(axis=1).all()
    cache.resize(CAPACITY)
    assert cache.slots == cache.capacity == CAPACITY
    every = [(layer, list(range(EXPERTS))) for layer in range(LAYERS)]
    expected = [[source.record(layer, expert) for expert in ids] for layer, ids in every]
    assert run(cache, every) == expected


def test_a_refusal_of_the_system_is_typed(source: TaggedSource) -> None:
    class Stubborn:
        address, nbytes = arena(4).address, 4 * RECORD

        def release(self, offset: int, nbytes: int) -> None:
            raise OSError(22, "Invalid argument")

    cache = ExpertCache(source, Stubborn(), FakeReader(1), slot_bytes=RECORD)
    with pytest.raises(StorageError, match="cannot be given back"):
        cache.resize(1)


@pytest.mark.parametrize("slots", [0, CAPACITY + 1])
def test_sizes_that_cannot_be_are_our_own_bugs(source: TaggedSource, slots: int) -> None:
    with pytest.raises(AssertionError):
        make_cache(source).resize(slots)


def resident_bytes(address: int) -> int:
    """Rss of the mapping that begins at or before the address, from /proc/self/smaps."""
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, end = (int(edge, 16) for edge in words[0].split("-"))
            ours = start <= address < end
        elif ours and words[0] == "Rss:":
            return int(words[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("huge_pages", [False, True])
def test_the_memory_behind_the_slots_leaves_the_process(
    source: TaggedSource, huge_pages: bool
) -> None:
    """Guesses in flight, and slots of which some lie in memory that goes."""
    slots, staging = 4096, 16
    memory = Arena((slots + staging) * RECORD, huge_pages=huge_pages)
    memory.populate(0, memory.nbytes, 1)
    cache = ExpertCache(source, memory, FakeReader(1), slot_bytes=RECORD, staging=staging)
    run(cache, [(0, [0, 1, 2, 3])])
    cache.guess(1, [4, 5, 6])
    cache.resize(1024)
    # A neighbouring mapping of the same kind may have been merged with the arena.
    kept = (1024 + staging) * RECORD
    assert resident_bytes(memory.address + memory.nbytes - RECORD) <= kept + (2 << 20)
    assert run(cache, [(1, [4, 5])]) == [[source.record(1, 4), source.record(1, 5)]]
