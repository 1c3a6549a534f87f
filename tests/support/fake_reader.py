"""A reader whose reads land late, in a random order, and fail on demand. Seeded: runs repeat."""

from __future__ import annotations

import ctypes
import errno
import random
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from flashmoe._native import crc32c
from flashmoe.experts.source import BAD_CHECKSUM, CANCELLED, READ_OK, SHORT_READ


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


@dataclass
class FakeReader:
    """Implements experts.source.Reader without threads: reads happen inside wait and cancel.

    delay_s: the longest pause before reads land. faults: by offset in the file.
    checked: offsets whose checksum was asked for; written: every address written so far.
    """

    seed: int = 0
    delay_s: float = 0.0
    faults: dict[int, Fault] = field(default_factory=dict)
    checked: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._paths: dict[int, Path] = {}
        self._queue: list[_Read] = []
        self._landed: list[tuple[int, int, int]] = []

    def open(self, path: str) -> int:
        with open(path, "rb"):
            pass
        self._paths[len(self._paths)] = Path(path)
        return len(self._paths) - 1

    def direct(self, handle: int) -> bool:
        return handle in self._paths

    def close_file(self, handle: int) -> None:
        del self._paths[handle]

    def submit(
        self, tag: int, handle: int, offset: int, nbytes: int, address: int, crc: int | None
    ) -> None:
        self._queue.append(_Read(tag, self._paths[handle], offset, nbytes, address, crc))

    def wait(self, timeout_s: float) -> list[tuple[int, int, int]]:
        if self._queue and not self._landed and timeout_s > 0:
            time.sleep(self._random.uniform(0, self.delay_s))
            self._land(self._random.randint(1, len(self._queue)))
        landed, self._landed = self._landed, []
        return landed

    def cancel(self) -> None:
        self._land(self._random.randint(0, len(self._queue)))
        self._landed += [(read.tag, CANCELLED, 0) for read in self._queue]
        self._queue.clear()

    def _land(self, count: int) -> None:
        self._random.shuffle(self._queue)
        self._landed += [self._perform(self._queue.pop()) for _ in range(count)]

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
