"""The cache serves the right bytes whatever the timing, and stays sound whatever fails."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe._native import Reader
from flashmoe.errors import ChecksumError, FlashMoeError, StorageError
from flashmoe.experts.cache import ExpertCache, default_reader_threads, open_cache
from flashmoe.experts.fetch import Verify
from tests.experts.support import RECORD, TaggedSource, arena, consume, run
from tests.support.fake_reader import FakeReader, Fault

LAYERS, EXPERTS = 3, 8

traces = st.lists(
    st.tuples(
        st.integers(0, LAYERS - 1),
        st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS),
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TaggedSource:
    return TaggedSource(tmp_path_factory.mktemp("experts"), LAYERS, EXPERTS).write()


def fake_cache(
    source: TaggedSource, reader: FakeReader, slots: int = 4, verify: Verify = "first"
) -> ExpertCache:
    return ExpertCache(source, arena(slots), reader, slot_bytes=RECORD, verify=verify)


def expected(source: TaggedSource, trace: Sequence[tuple[int, list[int]]]) -> list[list[bytes]]:
    return [[source.record(layer, expert) for expert in ids] for layer, ids in trace]


@settings(deadline=None)
@given(traces, st.integers(1, 30), st.integers(0, 2**32))
def test_right_bytes_for_any_size_and_any_order_of_reads(
    source: TaggedSource, trace: list[tuple[int, list[int]]], slots: int, seed: int
) -> None:
    cache = fake_cache(source, FakeReader(seed), slots)
    assert run(cache, trace) == expected(source, trace)


@settings(deadline=None, max_examples=30)
@given(traces, st.integers(1, 30), st.lists(st.integers(0, 2**32), min_size=2, max_size=2))
def test_residency_and_counts_do_not_depend_on_timing(
    source: TaggedSource, trace: list[tuple[int, list[int]]], slots: int, seeds: list[int]
) -> None:
    ends = []
    for seed in seeds:
        cache = fake_cache(source, FakeReader(seed), slots)
        run(cache, trace)
        stats = cache.stats
        ends.append((cache.resident(), stats.hits, stats.misses, stats.bytes_read))
    assert ends[0] == ends[1]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(traces, st.integers(1, 30), st.integers(1, 8))
def test_right_bytes_through_reader_threads(
    source: TaggedSource, trace: list[tuple[int, list[int]]], slots: int, threads: int
) -> None:
    with ExpertCache(source, arena(slots), Reader(threads), slot_bytes=RECORD) as cache:
        assert run(cache, trace) == expected(source, trace)


def test_hits_come_first_and_cost_no_read(source: TaggedSource) -> None:
    cache = fake_cache(source, FakeReader(delay_s=0.002))
    run(cache, [(0, [1, 2])])
    with cache.begin(0, [3, 1, 4, 2]) as ticket:
        groups = [[index for index, _ in group] for group in ticket.batches()]
    assert groups[0] == [1, 3]
    assert (cache.stats.hits, cache.stats.misses) == (2, 4)
    assert cache.stats.bytes_read == 4 * RECORD
    assert cache.stats.hit_rate == pytest.approx(1 / 3)
    assert cache.stats.wait_seconds > 0


def test_a_slot_is_not_overwritten_before_its_expert_was_computed(source: TaggedSource) -> None:
    reader = FakeReader()
    cache = fake_cache(source, reader, slots=1)
    with cache.begin(0, [0, 1, 2]) as ticket:
        for done, group in enumerate(ticket.batches(), start=1):
            assert len(group) == 1
            assert len(reader.written) == done


def test_nothing_is_kept_beyond_a_step_without_keep(source: TaggedSource) -> None:
    cache = ExpertCache(source, arena(8), FakeReader(), slot_bytes=RECORD, keep=False)
    run(cache, [(0, [1, 2])])
    cache.end_step()
    assert cache.resident() == frozenset()
    run(cache, [(0, [1, 2])])
    assert (cache.stats.hits, cache.stats.misses) == (0, 4)


def test_a_step_keeps_what_it_read_by_default(source: TaggedSource) -> None:
    cache = fake_cache(source, FakeReader())
    run(cache, [(0, [1, 2])])
    cache.end_step()
    assert cache.resident() == {(0, 1), (0, 2)}
    cache.clear()
    assert cache.resident() == frozenset()


def test_a_layer_without_experts(source: TaggedSource) -> None:
    cache = fake_cache(source, FakeReader())
    assert consume(cache.begin(0, []), 0) == []
    assert cache.stats.hit_rate == 0.0


@pytest.mark.parametrize(
    ("verify", "checks"), [("first", [1, 0, 1]), ("always", [1, 1, 2]), ("never", [0, 0, 0])]
)
def test_when_checksums_are_checked(
    source: TaggedSource, verify: Verify, checks: list[int]
) -> None:
    reader = FakeReader()
    cache = fake_cache(source, reader, slots=1, verify=verify)
    run(cache, [(0, [1])])
    first = len(reader.checked)
    cache.clear()
    run(cache, [(0, [1])])
    again = len(reader.checked) - first
    run(cache, [(0, [2]), (0, [1])])
    assert [first, again, len(reader.checked) - first - again] == checks


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault.EIO, StorageError, [os.strerror(errno.EIO), f"{RECORD} bytes"]),
        (Fault.SHORT, StorageError, ["ends inside an expert", f"expected {RECORD} bytes"]),
        (Fault.FLIP, ChecksumError, ["damaged", "expected crc32c"]),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_fault_is_named_and_leaves_the_cache_sound(
    source: TaggedSource, fault: Fault, error: type[FlashMoeError], words: list[str], seed: int
) -> None:
    reader = FakeReader(seed, faults={source.offset(5): fault})
    cache = fake_cache(source, reader, slots=6)
    run(cache, [(1, [0])])
    with pytest.raises(error) as caught:
        consume(cache.begin(1, [0, 4, 5, 6]), 4)
    place = f"{source.path(1)}: layer 1, expert 5, offset {source.offset(5)}"
    assert all(word in str(caught.value) for word in [place, *words])
    assert (1, 5) not in cache.resident()
    with pytest.raises(error):
        consume(cache.begin(1, [5]), 1)
    reader.faults.clear()
    trace = [(1, [5, 4, 0, 6]), (2, list(range(EXPERTS)))]
    assert run(cache, trace) == expected(source, trace)


def abandon(cache: ExpertCache, ids: list[int], groups: int) -> None:
    """Take some groups of a ticket, then leave as Ctrl-C would."""
    with cache.begin(0, ids) as ticket:
        for _ in itertools.islice(ticket.batches(), groups):
            pass
        raise KeyboardInterrupt


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("groups", [0, 1, 2])
def test_an_abandoned_ticket_leaves_the_cache_sound(
    source: TaggedSource, seed: int, groups: int
) -> None:
    cache = fake_cache(source, FakeReader(seed), slots=3)
    run(cache, [(0, [1])])
    with pytest.raises(KeyboardInterrupt):
        abandon(cache, [0, 1, 2, 3, 4], groups)
    trace = [(0, [4, 3, 2, 1, 0]), (1, [0, 1])]
    assert run(cache, trace) == expected(source, trace)


def test_begin_closes_a_forgotten_ticket(source: TaggedSource) -> None:
    cache = fake_cache(source, FakeReader(), slots=3)
    iterator = cache.begin(0, [0, 1, 2, 3]).batches()
    next(iterator)
    trace = [(0, [3, 2, 1, 0])]
    assert run(cache, trace) == expected(source, trace)


def test_closing_an_old_ticket_does_not_touch_the_new_one(source: TaggedSource) -> None:
    cache = fake_cache(source, FakeReader())
    old = cache.begin(0, [0])
    new = cache.begin(0, [1, 2])
    old.close()
    assert consume(new, 2) == [source.record(0, 1), source.record(0, 2)]


def test_an_interrupt_inside_the_reader_loses_nothing_but_time(
    source: TaggedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FakeReader()
    cache = fake_cache(source, reader)

    def interrupted(timeout_s: float) -> list[tuple[int, int, int]]:
        FakeReader.wait(reader, timeout_s)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reader, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            consume(cache.begin(0, [0, 1]), 2)
    trace = [(0, [0, 1, 2, 3])]
    assert run(cache, trace) == expected(source, trace)
    assert cache.resident() == {(0, 0), (0, 1), (0, 2), (0, 3)}  # no slot is lost


def test_a_file_cut_short_under_an_open_engine(tmp_path: Path) -> None:
    source = TaggedSource(tmp_path, 1, EXPERTS).write()
    with ExpertCache(source, arena(4), Reader(4), slot_bytes=RECORD) as cache:
        run(cache, [(0, [0])])
        os.truncate(source.path(0), source.offset(6) + 4096 + 100)
        with pytest.raises(StorageError, match=r"expected 8192 bytes, got 4196 bytes"):
            consume(cache.begin(0, [0, 6]), 2)
        with pytest.raises(StorageError, match="got 0 bytes"):
            consume(cache.begin(0, [7]), 1)
        assert run(cache, [(0, [0, 5])]) == expected(source, [(0, [0, 5])])


def test_a_bit_flipped_on_disk(tmp_path: Path) -> None:
    source = TaggedSource(tmp_path, 1, 2).write()
    data = bytearray(source.path(0).read_bytes())
    data[source.offset(1) + 777] ^= 4
    source.path(0).write_bytes(data)
    with ExpertCache(source, arena(4), Reader(4), slot_bytes=RECORD) as cache:
        with pytest.raises(ChecksumError, match="layer 0, expert 1"):
            consume(cache.begin(0, [0, 1]), 2)
        assert cache.resident() <= {(0, 0)}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    source = TaggedSource(tmp_path, 1, 2)
    with pytest.raises(StorageError, match="experts-000: cannot be opened: No such file"):
        fake_cache(source, FakeReader())


def test_buffered_reads_are_said_aloud(
    source: TaggedSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = FakeReader()
    monkeypatch.setattr(reader, "direct", lambda handle: handle != 1)
    cache = fake_cache(source, reader)
    assert cache.buffered_files == (source.path(1),)
    assert "O_DIRECT is refused" in caplog.text


def test_a_closed_cache_holds_nothing_and_serves_nothing(source: TaggedSource) -> None:
    memory = arena(4)
    cache = ExpertCache(source, memory, FakeReader(), slot_bytes=RECORD)
    run(cache, [(0, [1])])
    cache.begin(0, [1, 2])
    held = sys.getrefcount(memory)
    cache.close()
    cache.close()
    assert sys.getrefcount(memory) == held - 1
    assert cache.resident() == frozenset()
    with pytest.raises(AssertionError, match="closed"):
        cache.begin(0, [1])


def test_open_cache_owns_arena_and_reader(source: TaggedSource) -> None:
    with open_cache(source, slots=5, slot_bytes=RECORD) as cache:
        assert cache.slots == 5
        assert run(cache, [(2, [7, 0])]) == expected(source, [(2, [7, 0])])
    assert 4 <= default_reader_threads() <= 8
