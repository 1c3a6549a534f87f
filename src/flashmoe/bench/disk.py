"""How fast experts can be read from a file: block size x reads in flight x kind of read and memory.

    python -m flashmoe.bench.disk FILE [--block BYTES ...] [--depth N ...] [--seconds S]

Blocks at random places go into memory that was touched before, as the engine's do. No block is
read twice while others are left, but the disk itself may cache: take a file of several GB.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from flashmoe._native import Arena, Reader
from flashmoe.errors import FlashMoeError, StorageError, UsageError
from flashmoe.experts.source import READ_ALIGNMENT, READ_OK

BLOCKS: Final = (256 << 10, 1 << 20, 2_654_208, 8 << 20)
"""Bytes. 2654208: an expert of Qwen3-30B-A3B at 4.5 bits per weight."""
DEPTHS: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Case:
    """depth: reader threads, each with one read in flight. direct: past the page cache."""

    block_bytes: int
    depth: int
    direct: bool
    huge_pages: bool


@dataclass(frozen=True, slots=True)
class Result:
    """cpu_seconds: user and system time of the whole process while it read nbytes."""

    case: Case
    nbytes: int
    seconds: float
    cpu_seconds: float

    @property
    def gb_per_s(self) -> float:
        return self.nbytes / 1e9 / self.seconds

    @property
    def cpu_ms_per_gb(self) -> float:
        return 1e3 * self.cpu_seconds / (self.nbytes / 1e9)


class _Stream:
    """Random blocks of a file, with always as many queued again as are being read."""

    def __init__(self, path: Path, case: Case, seed: int) -> None:
        self._path, self._nbytes = path, case.block_bytes
        self._offsets = _for_ever(_places(path, case), seed)
        # Attributes are freed in this order: the reader before the memory that it writes into.
        self._reader = Reader(case.depth)
        self._memory = Arena(2 * case.depth * self._nbytes, huge_pages=case.huge_pages)
        self._handle = self._reader.open(str(path), direct=case.direct)
        if self._reader.direct(self._handle) != case.direct:
            raise StorageError("the file system refuses O_DIRECT", where=path)
        for slot in range(2 * case.depth):
            self._submit(slot)

    def land(self) -> int:
        """Bytes that have landed since the last call; as many are queued anew."""
        results = self._reader.wait(1.0)
        for slot, status, _ in results:
            if status != READ_OK:
                raise StorageError(f"read failed with status {status}", where=self._path)
            self._submit(slot)
        return len(results) * self._nbytes

    def stop(self) -> None:
        self._reader.cancel()

    def _submit(self, slot: int) -> None:
        address = self._memory.address + slot * self._nbytes
        self._reader.submit(slot, self._handle, next(self._offsets), self._nbytes, address)


def measure(path: Path, case: Case, seconds: float, seed: int = 0) -> Result:
    """Read for some seconds. Raises StorageError if the file cannot be read so, or OSError."""
    _forget_cached(path)
    stream = _Stream(path, case, seed)
    landed, cpu, begin = 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        landed += stream.land()
    result = Result(case, landed, elapsed, time.process_time() - cpu)
    stream.stop()
    return result


def cases(blocks: Iterable[int] = BLOCKS, depths: Iterable[int] = DEPTHS) -> Iterator[Case]:
    """Direct reads into huge and into 4 KiB pages, and buffered reads, of every block and depth."""
    for block, depth in product(blocks, depths):
        yield Case(block, depth, direct=True, huge_pages=True)
        yield Case(block, depth, direct=True, huge_pages=False)
        yield Case(block, depth, direct=False, huge_pages=True)


def row(result: Result) -> str:
    """One line of the table."""
    case = result.case
    return (
        f"{case.block_bytes:>10}  {case.depth:>5}  {'direct' if case.direct else 'buffered':<8}"
        f"  {'huge' if case.huge_pages else '4K':<5}  {result.gb_per_s:>5.2f}"
        f"  {result.cpu_ms_per_gb:>9.0f}"
    )


HEADER: Final = f"{'block':>10}  {'depth':>5}  {'read':<8}  {'pages':<5}  {'GB/s':>5}  CPU ms/GB"


def _places(path: Path, case: Case) -> list[int]:
    """Where the whole blocks of a file begin."""
    nbytes, size = case.block_bytes, path.stat().st_size
    if not 0 < nbytes <= size or nbytes % READ_ALIGNMENT:
        raise UsageError(
            "cannot read such blocks",
            where=path,
            expected=f"a multiple of {READ_ALIGNMENT}, at most the size of the file ({size} bytes)",
            got=f"{nbytes} bytes",
        )
    if case.depth < 1:
        raise UsageError("depth is too small", expected="at least 1", got=case.depth)
    return list(range(0, size - nbytes + 1, nbytes))


def _for_ever(places: list[int], seed: int) -> Iterator[int]:
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flashmoe.bench.disk", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--block", type=int, nargs="+", default=BLOCKS, metavar="BYTES")
    parser.add_argument("--depth", type=int, nargs="+", default=DEPTHS, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args(arguments)
    print(HEADER)
    try:
        for case in cases(options.block, options.depth):
            print(row(measure(options.file, case, options.seconds)), flush=True)
    except OSError as error:
        print(f"{options.file}: {error.strerror}", file=sys.stderr)
        return 1
    except FlashMoeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
