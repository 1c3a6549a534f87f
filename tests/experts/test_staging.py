"""Guesses change when an expert is read, and nothing else: not the bytes, not what is resident."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe._native import Reader
from flashmoe.errors import ChecksumError, StorageError
from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.staging import staging_slots
from tests.experts.support import RECORD, TaggedSource, arena, consume
from tests.support.fake_reader import FakeReader, Fault

LAYERS, EXPERTS = 3, 8

experts = st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS)
# What each layer wants, and what was guessed of the next one meanwhile.
traces = st.lists(st.tuples(st.integers(0, LAYERS - 1), experts, experts), max_size=10)
Trace = list[tuple[int, list[int], list[int]]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TaggedSource:
    return TaggedSource(tmp_path_factory.mktemp("experts"), LAYERS, EXPERTS).write()


def open_cache(source: TaggedSource, reader: Any, slots: int = 4, staging: int = 3) -> ExpertCache:
    memory = arena(slots + staging)
    return ExpertCache(source, memory, reader, slot_bytes=RECORD, staging=staging)


def play(cache: ExpertCache, trace: Trace, *, guess: bool = True) -> list[Any]:
    """What every step is served, and what is resident after it."""
    seen: list[Any] = []
    for place, (layer, wanted, guessed) in enumerate(trace):
        ticket = cache.begin(layer, wanted)
        if guess and place + 1 < len(trace):
            cache.guess(trace[place + 1][0], guessed)
        seen.append((consume(ticket, len(wanted)), cache.resident()))
    return seen


def counts(cache: ExpertCache) -> tuple[int, int, int]:
    return cache.stats.hits, cache.stats.misses, cache.stats.bytes_read


@settings(deadline=None)
@given(traces, st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32), st.floats(0, 1))
def test_guesses_change_neither_bytes_nor_residency(
    source: TaggedSource, trace: Trace, slots: int, staging: int, seed: int, share: float
) -> None:
    plain = open_cache(source, FakeReader(seed), slots, staging)
    guessing = open_cache(source, FakeReader(seed + 1, guess_share=share), slots, staging)
    expected = play(plain, trace, guess=False)
    assert play(guessing, trace) == expected
    assert counts(guessing) == counts(plain)
    for (layer, wanted, _), (served, _) in zip(trace, expected, strict=True):
        assert served == [source.record(layer, expert) for expert in wanted]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(traces, st.integers(1, 12), st.integers(1, 4))
def test_the_same_through_reader_threads(
    source: TaggedSource, trace: Trace, slots: int, threads: int
) -> None:
    plain = open_cache(source, FakeReader(), slots)
    with open_cache(source, Reader(threads, guess_piece=4096), slots) as cache:
        assert play(cache, trace) == play(plain, trace, guess=False)


@settings(deadline=None)
@given(traces, st.integers(1, 12), st.integers(0, 2**32))
def test_find_agrees_with_begin(source: TaggedSource, trace: Trace, slots: int, seed: int) -> None:
    cache = open_cache(source, FakeReader(seed), slots)
    plain = open_cache(source, FakeReader(seed), slots)
    for layer, wanted, guessed in trace:
        there = {(layer, expert) for expert in wanted} <= cache.resident()
        found = cache.find(layer, np.array([wanted], dtype=np.int32))
        if found is None:
            assert not there or layer not in {key[0] for key in cache.resident()}
            consume(cache.begin(layer, wanted), len(wanted))
        else:
            assert there
            records = [ctypes.string_at(int(address), RECORD) for address in found]
            assert records == [source.record(layer, expert) for expert in wanted]
        cache.guess(layer, guessed)
        consume(plain.begin(layer, wanted), len(wanted))
        assert cache.resident() == plain.resident()
    assert counts(cache) == counts(plain)


def test_a_right_guess_is_a_miss_that_needs_no_wait(source: TaggedSource) -> None:
    reader = FakeReader(guess_share=1.0)
    cache = open_cache(source, reader)
    cache.guess(0, [1, 2, 3])
    cache.guess(0, [1, 2, 3])  # takes in what has landed
    reads = len(reader.written)
    assert consume(cache.begin(0, [2, 1, 4]), 3)[0] == source.record(0, 2)
    assert reads == 3
    assert (cache.stats.misses, cache.stats.prefetched) == (3, 2)


def test_a_wrong_guess_is_counted_and_its_memory_serves_again(source: TaggedSource) -> None:
    cache = open_cache(source, FakeReader(guess_share=1.0), staging=2)
    for step in range(6):
        layer = step % LAYERS
        cache.guess(layer, [0, 1, 2])
        consume(cache.begin(layer, [5]), 1)
    assert cache.stats.prefetched == 0
    assert cache.stats.prefetch_wasted > 0


def test_no_more_is_guessed_than_there_is_room(source: TaggedSource) -> None:
    reader = FakeReader(guess_share=1.0)
    cache = open_cache(source, reader, staging=2)
    for _ in range(2):
        cache.guess(0, range(EXPERTS))
    assert len(reader.written) == 2


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_bad_guess_fails_only_if_the_expert_is_wanted(
    source: TaggedSource, fault: Fault, share: float
) -> None:
    reader = FakeReader(faults={source.offset(5): fault}, guess_share=share)
    cache = open_cache(source, reader)
    ticket = cache.begin(0, [1])
    cache.guess(1, [5, 6])
    consume(ticket, 1)
    assert consume(cache.begin(1, [6]), 1) == [source.record(1, 6)]
    ticket = cache.begin(0, [2])
    cache.guess(1, [5])
    consume(ticket, 1)
    error = ChecksumError if fault is Fault.FLIP else StorageError
    with pytest.raises(error, match="layer 1, expert 5"):
        consume(cache.begin(1, [5]), 1)
    reader.faults.clear()
    assert consume(cache.begin(1, [5, 7]), 2) == [source.record(1, 5), source.record(1, 7)]


def test_damage_on_disk_in_a_guess(tmp_path: Path) -> None:
    source = TaggedSource(tmp_path, 1, 4).write()
    data = bytearray(source.path(0).read_bytes())
    data[source.offset(1) + 777] ^= 4
    source.path(0).write_bytes(data)
    with open_cache(source, Reader(2)) as cache:
        for wanted in ([2], [3, 0]):
            cache.guess(0, [1])
            consume(cache.begin(0, wanted), len(wanted))
        cache.guess(0, [1])
        with pytest.raises(ChecksumError, match="layer 0, expert 1"):
            consume(cache.begin(0, [1]), 1)


def abandon(cache: ExpertCache, groups: int) -> None:
    """Take some groups of a ticket amid guesses, then leave as Ctrl-C would."""
    with cache.begin(0, [0, 1, 2, 3]) as ticket:
        cache.guess(1, [4, 5])
        for _ in itertools.islice(ticket.batches(), groups):
            pass
        raise KeyboardInterrupt


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("groups", [0, 1])
def test_an_interrupt_amid_guesses_leaves_the_cache_sound(
    source: TaggedSource, seed: int, groups: int
) -> None:
    cache = open_cache(source, FakeReader(seed), slots=3)
    cache.guess(0, [0, 1, 7])
    with pytest.raises(KeyboardInterrupt):
        abandon(cache, groups)
    trace: Trace = [(0, [3, 2, 1, 0], [4, 5]), (1, [4, 6], [0, 1, 2]), (1, [0, 1, 2], [])]
    served = [step[0] for step in play(cache, trace)]
    assert served == [[source.record(layer, e) for e in wanted] for layer, wanted, _ in trace]
    cache.guess(2, range(EXPERTS))
    cache.close()


def test_guesses_end_with_the_step(source: TaggedSource) -> None:
    cache = open_cache(source, FakeReader(guess_share=1.0))
    cache.guess(0, [1, 2])
    cache.end_step()
    consume(cache.begin(0, [1]), 1)
    assert cache.stats.prefetched == 0


@pytest.mark.parametrize(
    ("slots", "keep", "expected"),
    [(655, True, 16), (64, True, 8), (7, True, 0), (3072, True, 0), (655, False, 0)],
)
def test_how_much_memory_is_for_guesses(slots: int, keep: bool, expected: int) -> None:
    assert staging_slots(slots, 3072, 8, keep=keep) == expected
