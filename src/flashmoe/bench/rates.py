"""What bounds a decode step, measured beside it: rate of the disk, rate of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

from flashmoe import _native
from flashmoe.bench.disk import Case, measure, supports_direct
from flashmoe.experts.source import READ_ALIGNMENT

# Several times the largest last-level cache of a core complex.
MEMORY_BYTES = 256 << 20


@dataclass
class Rates:
    """Samples in bytes per second; the medians count, as those of the windows do."""

    disk: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def add(self, disk: float, memory: float) -> None:
        """Add a sample of both."""
        self.disk.append(disk)
        self.memory.append(memory)

    def seconds(self, missed_bytes: float, touched_bytes: float) -> float:
        """The least time for work that reads so much from the disk and so much from memory."""
        return max(missed_bytes / median(self.disk), touched_bytes / median(self.memory))

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "disk_bytes_per_s": median(self.disk),
            "memory_bytes_per_s": median(self.memory),
            "disk_samples": self.disk,
            "memory_samples": self.memory,
        }


def around_runs(samples: Sequence[float]) -> list[float]:
    """Samples [2 N], right before and after each of N runs -> the mean of each two, [N]."""
    return [mean(two) for two in zip(samples[::2], samples[1::2], strict=True)]


@dataclass(frozen=True)
class RateMeter:
    """Takes samples under the conditions of the engine: record size, reads in flight, threads.

    Takes MEMORY_BYTES while it runs: not while a model is open that fills a memory limit.
    """

    files: Sequence[Path]
    record_bytes: int
    readers: int
    threads: int
    seconds: float = 1.0
    rates: Rates = field(default_factory=Rates)

    def sample(self) -> None:
        """Measure disk and memory, `seconds` each, and keep the sample."""
        self.rates.add(*self.measure())

    def measure(self) -> tuple[float, float]:
        """Disk and memory in bytes per second, measured for `seconds` each."""
        return self.disk(), self._memory()

    def disk(self) -> float:
        """Bytes per second of the disk, measured for `seconds`."""
        direct = supports_direct(self.files[0])
        case = Case(self.record_bytes, self.readers, direct, huge_pages=True)
        seed = len(self.rates.disk)  # other blocks in each sample
        result = measure(self.files, case, self.seconds, seed)
        return result.nbytes / result.seconds

    def _memory(self) -> float:
        return memory_rate(self.threads, self.seconds)


def memory_rate(threads: int, seconds: float) -> float:
    """Bytes per second that threads read from memory together. Takes MEMORY_BYTES meanwhile."""
    assert MEMORY_BYTES % READ_ALIGNMENT == 0
    pool = _native.Pool(threads)
    arena = _native.Arena(MEMORY_BYTES, huge_pages=True, threads=threads)
    data, passes, begin = arena.view(0, MEMORY_BYTES), 0, perf_counter()
    while (elapsed := perf_counter() - begin) < seconds or not passes:
        _native.read_sum(pool, data)
        passes += 1
    return passes * MEMORY_BYTES / elapsed
