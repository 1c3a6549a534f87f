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
