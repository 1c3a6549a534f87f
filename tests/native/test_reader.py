"""The reader on real files: on disk, on tmpfs where there is one, and where O_DIRECT is refused."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flashmoe._native import Arena, Reader, crc32c

BLOCK = 4096
SIZE = 64 * BLOCK
SHORT_READ, BAD_CHECKSUM, CANCELLED = -1, -2, -3


@pytest.fixture(scope="module")
def content() -> np.ndarray:
    return np.frombuffer(np.random.default_rng(1).bytes(SIZE), dtype=np.uint8)


@pytest.fixture(params=["disk", "tmpfs"])
def path(request: pytest.FixtureRequest, content: np.ndarray) -> Iterator[Path]:
    parent = Path(__file__).parent if request.param == "disk" else Path("/dev/shm")
    if not os.access(parent, os.W_OK):
        pytest.skip(f"cannot write in {parent}")
    with tempfile.TemporaryDirectory(dir=parent, prefix="flashmoe-test-") as folder:
        file = Path(folder) / "data"
        file.write_bytes(content.tobytes())
        yield file


def land(reader: Reader, count: int) -> dict[int, tuple[int, int]]:
    """{tag: (status, detail)} of the next `count` reads."""
    landed: dict[int, tuple[int, int]] = {}
    while len(landed) < count:
        results = reader.wait(10.0)
        assert results, "nothing landed"
        landed |= {tag: (status, detail) for tag, status, detail in results}
    return landed


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_many_reads_land_where_they_belong(path: Path, content: np.ndarray, threads: int) -> None:
    reader, arena = Reader(threads), Arena(SIZE)
    handle = reader.open(str(path))
    order = np.random.default_rng(threads).permutation(64)
    for tag in order.tolist():
        part = content[tag * BLOCK : (tag + 1) * BLOCK]
        reader.submit(tag, handle, tag * BLOCK, BLOCK, arena.address + tag * BLOCK, crc32c(part))
    assert land(reader, 64) == dict.fromkeys(range(64), (0, 0))
    assert (arena.view(0, SIZE) == content).all()
    stats = reader.stats()
    assert (stats["reads"], stats["bytes"]) == (64, SIZE)
    assert stats["busy_s"] > 0


def test_direct_tells_the_kind_of_read(path: Path) -> None:
    reader = Reader(1)
    direct = reader.direct(reader.open(str(path)))
    try:
        with open(os.open(path, os.O_RDONLY | os.O_DIRECT), "rb", buffering=0) as file:
            file.readinto(Arena(BLOCK).view(0, BLOCK))
        assert direct
    except OSError:
        assert not direct


def test_where_o_direct_is_refused_reads_are_buffered() -> None:
    file = Path("/proc/filesystems")  # procfs knows no direct reads; this file does not change
    data = file.read_bytes()
    reader, arena = Reader(1), Arena(BLOCK)
    handle = reader.open(str(file))
    assert not reader.direct(handle)
    reader.submit(1, handle, 0, BLOCK, arena.address)
    assert land(reader, 1) == {1: (SHORT_READ, len(data))}
    assert arena.view(0, len(data)).tobytes() == data


def test_buffered_reads_on_request(path: Path, content: np.ndarray) -> None:
    reader, arena = Reader(2), Arena(SIZE)
    handle = reader.open(str(path), direct=False)
    assert not reader.direct(handle)
    reader.submit(1, handle, 0, SIZE, arena.address, crc32c(content))
    assert land(reader, 1) == {1: (0, 0)}
    assert (arena.view(0, SIZE) == content).all()


def test_partial_reads_continue() -> None:
    file = Path("/proc/kallsyms")  # procfs gives it out in pieces of odd sizes
    if not file.exists():
        pytest.skip("the kernel has no /proc/kallsyms")
    reader, arena = Reader(1), Arena(SIZE)
    reader.submit(1, reader.open(str(file)), 0, SIZE, arena.address)
    assert land(reader, 1) == {1: (0, 0)}
    with file.open("rb") as symbols:
        assert arena.view(0, SIZE).tobytes() == symbols.read(SIZE)


@pytest.mark.parametrize("cut", [10 * BLOCK, 10 * BLOCK + 100, 8 * BLOCK, 0])
def test_a_file_that_ends_early(path: Path, cut: int) -> None:
    reader, arena = Reader(2), Arena(SIZE)
    handle = reader.open(str(path))
    os.truncate(path, cut)
    reader.submit(1, handle, 8 * BLOCK, 8 * BLOCK, arena.address, 0)
    assert land(reader, 1) == {1: (SHORT_READ, max(0, cut - 8 * BLOCK))}
    reader.submit(2, handle, 2**40, BLOCK, arena.address)
    assert land(reader, 1) == {2: (SHORT_READ, 0)}


def test_checksums_are_checked_when_given(path: Path, content: np.ndarray) -> None:
    right = crc32c(content[:BLOCK])
    for verify, status in ((True, (BAD_CHECKSUM, right)), (False, (0, 0))):
        reader, arena = Reader(1, verify), Arena(BLOCK)
        reader.submit(1, reader.open(str(path)), 0, BLOCK, arena.address, right ^ 1)
        assert land(reader, 1) == {1: status}
    reader.submit(2, 0, 0, BLOCK, arena.address, None)
    assert land(reader, 1) == {2: (0, 0)}


def test_an_error_of_the_system_is_its_errno(path: Path) -> None:
    reader = Reader(1)
    handle = reader.open(str(path))
    reader.submit(1, handle, 0, BLOCK, BLOCK)  # nothing is mapped there
    assert land(reader, 1)[1][0] > 0


def test_cancel_drops_what_has_not_started(path: Path) -> None:
    reader, arena = Reader(1), Arena(SIZE)
    handle = reader.open(str(path))
    for tag in range(200):
        reader.submit(tag, handle, 0, SIZE, arena.address)
    reader.cancel()
    landed = reader.wait(0.0)
    assert sorted(tag for tag, _, _ in landed) == list(range(200))
    assert {status for _, status, _ in landed} <= {0, CANCELLED}
    assert reader.wait(10.0) == []


def test_wait_returns_at_once_when_there_is_nothing_to_wait_for() -> None:
    begin = time.perf_counter()
    assert Reader(2).wait(30.0) == []
    assert time.perf_counter() - begin < 10


def test_opening_does_not_hold_the_interpreter(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"  # opening it blocks until there is a writer
    os.mkfifo(fifo)
    reader = Reader(1)
    opener = threading.Thread(target=lambda: reader.open(str(fifo)))
    opener.start()
    with open(fifo, "wb"):  # needs the interpreter while open() blocks in the other thread
        opener.join(10)
    assert not opener.is_alive()


def test_several_threads_may_submit(path: Path, content: np.ndarray) -> None:
    reader, arena = Reader(4), Arena(SIZE)
    handle = reader.open(str(path))

    def submit(first: int) -> None:
        for tag in range(first, 64, 4):
            reader.submit(tag, handle, tag * BLOCK, BLOCK, arena.address + tag * BLOCK)

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    land(reader, 64)
    assert (arena.view(0, SIZE) == content).all()


def test_a_reader_may_go_with_reads_queued(path: Path) -> None:
    arena = Arena(SIZE)
    for _ in range(20):
        reader = Reader(2)
        handle = reader.open(str(path))
        for tag in range(50):
            reader.submit(tag, handle, 0, SIZE, arena.address)
        reader.close_file(handle)
        del reader


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("wrong", [1, 512, 4095])
def test_what_is_not_aligned_is_refused(path: Path, position: int, wrong: int) -> None:
    reader, arena = Reader(1), Arena(SIZE)
    numbers = [BLOCK, BLOCK, arena.address]
    numbers[position] += wrong
    with pytest.raises(ValueError, match=r"\[Reader.submit\] offset, nbytes, address"):
        reader.submit(1, reader.open(str(path)), *numbers)


def test_what_makes_no_sense_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="threads: expected at least 1"):
        Reader(0)
    reader, arena = Reader(1), Arena(BLOCK)
    handle = reader.open(str(path))
    with pytest.raises(ValueError, match="multiples"):
        reader.submit(1, handle, 0, 0, arena.address)
    reader.close_file(handle)
    for bad in (handle, -1, 7):
        with pytest.raises(ValueError, match="handle: expected an open file"):
            reader.submit(1, bad, 0, BLOCK, arena.address)
        with pytest.raises(ValueError, match="handle: expected an open file"):
            reader.close_file(bad)


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Reader(1).open(str(tmp_path / "absent"))
    assert caught.value.filename == str(tmp_path / "absent")


def many(count: int, handle: int, arena: Arena, first: int = 0) -> list[tuple[int, ...]]:
    """Reads of whole blocks, tag n into place n."""
    places = range(first, first + count)
    return [(n, handle, n * BLOCK, BLOCK, arena.address + n * BLOCK, None) for n in places]


@pytest.mark.parametrize("piece", [BLOCK, 3 * BLOCK, SIZE])
def test_pieces_make_up_the_whole(path: Path, content: np.ndarray, piece: int) -> None:
    reader, arena = Reader(3, demand_piece=piece, guess_piece=piece), Arena(SIZE)
    handle = reader.open(str(path))
    for guess in (False, True):
        arena.view(0, SIZE)[:] = 0
        read = (1, handle, 0, SIZE, arena.address, crc32c(content))
        reader.submit_many([read], guess=guess)
        reader.keep_guesses([1])
        assert land(reader, 1) == {1: (0, 0)}
        assert (arena.view(0, SIZE) == content).all()


@pytest.mark.parametrize("piece", [BLOCK, 3 * BLOCK])
def test_the_end_of_a_file_is_found_in_pieces_too(path: Path, piece: int) -> None:
    reader, arena = Reader(4, demand_piece=piece), Arena(SIZE)
    handle = reader.open(str(path))
    os.truncate(path, 10 * BLOCK + 100)
    reader.submit(1, handle, 0, SIZE, arena.address, 0)
    assert land(reader, 1) == {1: (SHORT_READ, 10 * BLOCK + 100)}


def test_one_bad_read_of_many_queues_none(path: Path) -> None:
    reader, arena = Reader(1), Arena(SIZE)
    reads = many(3, reader.open(str(path)), arena)
    with pytest.raises(ValueError, match="multiples of 4096"):
        reader.submit_many([*reads, (9, 0, 1, BLOCK, arena.address, None)])
    assert reader.wait(0.0) == []
    assert reader.stats()["reads"] == 0


def test_a_guess_is_read_without_being_waited_for(path: Path, content: np.ndarray) -> None:
    reader, arena = Reader(2), Arena(SIZE)
    reader.submit_many(many(4, reader.open(str(path)), arena), guess=True)
    landed: list[tuple[int, int, int]] = []
    deadline = time.monotonic() + 10
    while len(landed) < 4 and time.monotonic() < deadline:
        landed += reader.wait(10.0)  # returns at once: no demand is left
    assert sorted(landed) == [(n, 0, 0) for n in range(4)]
    assert (arena.view(0, 4 * BLOCK) == content[: 4 * BLOCK]).all()


def test_guesses_that_are_not_kept_are_dropped(path: Path) -> None:
    reader, arena = Reader(1, guess_piece=BLOCK), Arena(2 * SIZE)
    handle = reader.open(str(path))
    places = [arena.address + (n % 2) * SIZE for n in range(100)]
    reader.submit_many([(n, handle, 0, SIZE, p, None) for n, p in enumerate(places)], guess=True)
    reader.keep_guesses([50, 99, 1000])
    landed = land(reader, 100)
    assert landed[50] == landed[99] == (0, 0)
    assert {status for status, _ in landed.values()} <= {0, CANCELLED}
    assert sum(status == CANCELLED for status, _ in landed.values()) > 50
    assert reader.stats()["raw_bytes"] >= 2 * SIZE


def test_demands_come_before_guesses(path: Path) -> None:
    """Hundreds of guesses are queued: a demand waits for the pieces under way only."""
    reader, arena = Reader(1, guess_piece=BLOCK), Arena(2 * SIZE)
    handle = reader.open(str(path))
    guesses = [(n, handle, 0, SIZE, arena.address, None) for n in range(300)]
    reader.submit_many(guesses, guess=True)
    reader.submit_many([(1000, handle, 0, SIZE, arena.address + SIZE, None)])
    before = reader.wait(10.0)
    assert 1000 in {tag for tag, _, _ in before}
    assert len(before) < 300
    reader.cancel()


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_both_queues_under_stress(path: Path, content: np.ndarray, threads: int) -> None:
    reader, arena = Reader(threads, demand_piece=2 * BLOCK, guess_piece=BLOCK), Arena(SIZE)
    handle, chance = reader.open(str(path)), np.random.default_rng(threads)
    free, flying, good = set(range(8)), dict[int, tuple[int, int]](), 0
    for step in range(600):
        guess = bool(step % 2)
        reads: list[tuple[int, ...]] = []
        for slot in list(free)[: int(chance.integers(0, 5))]:
            tag, offset = 10 * step + slot, int(chance.integers(0, 56)) * BLOCK
            free.remove(slot)
            flying[tag] = slot, offset
            crc = crc32c(content[offset : offset + 8 * BLOCK])
            address = arena.address + slot * 8 * BLOCK
            reads.append((tag, handle, offset, 8 * BLOCK, address, crc))
        reader.submit_many(reads, guess=guess)
        if step % 3 == 0:
            reader.keep_guesses([tag for tag in flying if chance.random() < 0.5])
        if step % 50 == 0:
            reader.cancel()
        for tag, status, _ in reader.wait(0.01 if chance.random() < 0.3 else 0.0):
            slot, offset = flying.pop(tag)
            assert status in (0, CANCELLED)
            if status == 0:
                got = arena.view(slot * 8 * BLOCK, 8 * BLOCK)
                assert (got == content[offset : offset + 8 * BLOCK]).all()
                good += 1
            free.add(slot)
    reader.cancel()
    assert {tag for tag, _, _ in reader.wait(0.0)} == set(flying)
    assert good > 100
    stats = reader.stats()
    assert 0 < stats["reading_s"] == reader.stats()["reading_s"]  # nothing counts as being read


@pytest.mark.parametrize("name", ["demand_piece", "guess_piece", "guess_depth", "guess_below"])
def test_options_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Reader"):
        Reader(1, **{name: 0})
