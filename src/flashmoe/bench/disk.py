"""How fast experts can be read from a file: block size x reads in flight x kind of read and memory.

Blocks at random places go into memory that was touched before, as the engine's do. No block is
read twice while others are left, but the disk itself may cache: take files of several GB.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from flashmoe._native import Arena, Reader
from flashmoe.errors import StorageError, UsageError
from flashmoe.experts.source import BAD_CHECKSUM, READ_ALIGNMENT, READ_OK

BLOCKS: Final = (256 << 10, 1 << 20, 2_654_208, 8 << 20)
"""Bytes. 2654208: an expert of Qwen3-30B-A3B at 4.5 bits per weight."""
DEPTHS: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Case:
    """depth: reader threads, each with one read in flight. direct: past the page cache.
    checksums: whether the CRC-32C of every block is taken."""

    block_bytes: int
    depth: int
    direct: bool
    huge_pages: bool
    checksums: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """cpu_seconds: user and system time of the threads that read nbytes; checksum_seconds: of their
    checksums. Interrupts and the thread that waits are in neither."""

    case: Case
    nbytes: int
    seconds: float
    cpu_seconds: float
    checksum_seconds: float = 0.0

    @property
    def gb_per_s(self) -> float:
        return self.nbytes / 1e9 / self.seconds

    @property
    def cpu_ms_per_gb(self) -> float:
        return 1e3 * self.cpu_seconds / (self.nbytes / 1e9)

    @property
    def checksum_ms_per_gb(self) -> float:
        return 1e3 * self.checksum_seconds / (self.nbytes / 1e9)


class _Stream:
    """Random blocks of some files, with always as many queued again as are being read."""

    def __init__(self, paths: Sequence[Path], case: Case, seed: int) -> None:
        self._paths, self._nbytes = paths, case.block_bytes
        # Any value does: what is found is not compared here.
        self._crc = 0 if case.checksums else None
        self._good = {READ_OK, BAD_CHECKSUM} if case.checksums else {READ_OK}
        self._blocks = _for_ever(_places(paths, case), seed)
        # Attributes are freed in this order: the reader before the memory that it writes into.
        self._reader = Reader(case.depth, demand_piece=case.block_bytes)
        self._memory = Arena(2 * case.depth * self._nbytes, huge_pages=case.huge_pages)
        self._handles = [self._open(path, case.direct) for path in paths]
        for slot in range(2 * case.depth):
            self._submit(slot)

    def land(self) -> int:
        """Bytes that have landed since the last call; as many are queued anew."""
        results = self._reader.wait(1.0)
        for slot, status, _ in results:
            if status not in self._good:
                where = ", ".join(map(str, self._paths))
                raise StorageError(f"read failed with status {status}", where=where)
            self._submit(slot)
        return len(results) * self._nbytes

    def used(self) -> tuple[float, float, float]:
        """Of all that was read so far: bytes, processor time of reads and of checksums."""
        stats = self._reader.stats()
        return stats["raw_bytes"], stats["cpu_s"], stats["checksum_s"]

    def stop(self) -> None:
        self._reader.cancel()

    def _open(self, path: Path, direct: bool) -> int:
        handle = self._reader.open(str(path), direct=direct)
        if self._reader.direct(handle) != direct:
            raise StorageError("the file system refuses O_DIRECT", where=path)
        return handle

    def _submit(self, slot: int) -> None:
        address = self._memory.address + slot * self._nbytes
        file, offset = next(self._blocks)
        self._reader.submit(slot, self._handles[file], offset, self._nbytes, address, self._crc)


def measure(files: Path | Sequence[Path], case: Case, seconds: float, seed: int = 0) -> Result:
    """Read for some seconds, but at least one block.

    Raises StorageError if a file cannot be read so, UsageError for blocks or depths that cannot be
    had, or OSError.
    """
    paths = [files] if isinstance(files, Path) else list(files)
    for path in paths:
        _forget_cached(path)
    stream = _Stream(paths, case, seed)
    landed, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds or not landed:
        landed += stream.land()
    stream.stop()
    # The last reads end after the clock: times are those of all reads, for the bytes that count.
    raw, cpu, checksums = stream.used()
    share = landed / raw
    return Result(case, landed, elapsed, cpu * share, checksums * share)


def cases(blocks: Iterable[int] = BLOCKS, depths: Iterable[int] = DEPTHS) -> Iterator[Case]:
    """Every block and depth: direct reads into huge pages without and with checksums, into 4 KiB
    pages, and buffered reads."""
    for block, depth in product(blocks, depths):
        yield Case(block, depth, direct=True, huge_pages=True)
        yield Case(block, depth, direct=True, huge_pages=True, checksums=True)
        yield Case(block, depth, direct=True, huge_pages=False)
        yield Case(block, depth, direct=False, huge_pages=True)


def row(result: Result) -> str:
    """One line of the table."""
    case = result.case
    return (
        f"{case.block_bytes:>10}  {case.depth:>5}  {'direct' if case.direct else 'buffered':<8}"
        f"  {'huge' if case.huge_pages else '4K':<5}  {result.gb_per_s:>5.2f}"
        f"  {result.cpu_ms_per_gb:>9.0f}  {result.checksum_ms_per_gb:>9.0f}"
    )


HEADER: Final = (
    f"{'block':>10}  {'depth':>5}  {'read':<8}  {'pages':<5}  {'GB/s':>5}  CPU ms/GB  CRC ms/GB"
)


def supports_direct(path: Path) -> bool:
    """Whether reads of the file can go past the page cache. Raises OSError."""
    reader = Reader(1)
    return reader.direct(reader.open(str(path)))


def _places(paths: Sequence[Path], case: Case) -> list[tuple[int, int]]:
    """(index of the file, offset) of every whole block."""
    if case.depth < 1:
        raise UsageError("too small", where="depth", expected="at least 1", got=case.depth)
    nbytes, sizes = case.block_bytes, [path.stat().st_size for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if not 0 < nbytes <= size or nbytes % READ_ALIGNMENT:
            limit = f"at most the size of the file ({size} bytes)"
            raise UsageError(
                "cannot read such blocks",
                where=path,
                expected=f"a multiple of {READ_ALIGNMENT}, {limit}",
                got=f"{nbytes} bytes",
            )
    return [
        (file, offset)
        for file, size in enumerate(sizes)
        for offset in range(0, size - nbytes + 1, nbytes)
    ]


def _for_ever(places: list[tuple[int, int]], seed: int) -> Iterator[tuple[int, int]]:
    """All places in a random order, again and again."""
    shuffle = random.Random(seed)
    while True:
        shuffle.shuffle(places)
        yield from places


def _forget_cached(path: Path) -> None:
    """Drop the file from the page cache, so that buffered reads reach the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # pages that are not written yet would stay
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
