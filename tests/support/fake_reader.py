"""A reader whose reads land late, in a random order, and fail on demand. Seeded: runs repeat."""

from __future__ import annotations

import ctypes
import errno
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from flashmoe._native import crc32c
from flashmoe.experts.source import (
    BAD_CHECKSUM,
    CANCELLED,
    READ_OK,
    SHORT_READ,
    LandingRead,
    Read,
)


class Fault(Enum):
    EIO = "the disk reports an error"
    SHORT = "the file ends early"
    FLIP = "one bit is wrong"


@dataclass(frozen=True)
class _Read:
    tag: int
    path: Path
    offset: int
    nbytes: int
    address: int
    crc: int | None
    guess: bool = False


@dataclass
class FakeReader:
    """Implements experts.source.Reader without threads: reads happen inside its methods.

    delay_s: the longest pause before reads land. faults: by offset in the file. guess_share: how
    many of the guesses are read whenever one could be, 0 to 1.
    checked: offsets whose checksum was asked for; written: every address written so far.
    """

    seed: int = 0
    delay_s: float = 0.0
    guess_share: float = 0.5
    faults: dict[int, Fault] = field(default_factory=dict)
    checked: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._paths: dict[int, Path] = {}
        self._queue: list[_Read] = []
        self._landed: list[tuple[int, int, int]] = []
        self._demands_landed = 0

    def open(self, path: str) -> int:
        with open(path, "rb"):
            pass
        self._paths[len(self._paths)] = Path(path)
        return len(self._paths) - 1

    def direct(self, handle: int) -> bool:
        return handle in self._paths

    def close_file(self, handle: int) -> None:
        del self._paths[handle]

    def submit_many(self, reads: Sequence[Read], guess: bool = False) -> None:
        self._queue += [_Read(tag, self._paths[handle], *r, guess) for tag, handle, *r in reads]

    def submit_landings(self, reads: Sequence[LandingRead], guess: bool = False) -> None:
        raise AssertionError("records of packs only")

    def keep_guesses(self, tags: Sequence[int]) -> None:
        self._read_guesses()
        for read in [read for read in self._queue if read.guess]:
            self._queue.remove(read)
            if read.tag in tags:
                self._queue.append(replace(read, guess=False))
            else:
                self._landed.append((read.tag, CANCELLED, self._random.choice([0, 4096])))

    def wait(self, timeout_s: float) -> list[tuple[int, int, int]]:
        demands = [read for read in self._queue if not read.guess]
        if demands and self._demands_landed == 0 and timeout_s > 0:
            time.sleep(self._random.uniform(0, self.delay_s))
            self._land(self._random.sample(demands, self._random.randint(1, len(demands))))
        self._read_guesses()
        self._demands_landed = 0
        landed, self._landed = self._landed, []
        return landed

    def cancel(self) -> None:
        self._land(self._random.sample(self._queue, self._random.randint(0, len(self._queue))))
        self._landed += [(read.tag, CANCELLED, 0) for read in self._queue]
        self._queue.clear()

    def stats(self) -> dict[str, float]:
        return {"reading_s": 0.0, "cpu_s": 0.0, "checksum_s": 0.0, "landing_s": 0.0}

    def _read_guesses(self) -> None:
        if not all(read.guess for read in self._queue):
            return
        self._land([r for r in self._queue if self._random.random() < self.guess_share])

    def _land(self, reads: Sequence[_Read]) -> None:
        for read in reads:
            self._queue.remove(read)
            self._landed.append(self._perform(read))
            self._demands_landed += not read.guess

    def _perform(self, read: _Read) -> tuple[int, int, int]:
        fault = self.faults.get(read.offset)
        if fault is Fault.EIO:
            return read.tag, errno.EIO, 0
        with read.path.open("rb") as file:
            file.seek(read.offset)
            data = bytearray(file.read(read.nbytes))
        if fault is Fault.SHORT:
            del data[self._random.randrange(len(data)) :]
        if fault is Fault.FLIP:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        ctypes.memmove(read.address, bytes(data), len(data))
        self.written.append(read.address)
        if len(data) < read.nbytes:
            return read.tag, SHORT_READ, len(data)
        return self._check(read, data)

    def _check(self, read: _Read, data: bytearray) -> tuple[int, int, int]:
        if read.crc is None:
            return read.tag, READ_OK, 0
        self.checked.append(read.offset)
        found = crc32c(data)
        return (read.tag, READ_OK, 0) if found == read.crc else (read.tag, BAD_CHECKSUM, found)
