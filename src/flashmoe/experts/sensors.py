"""Signs that memory is short: stalls (PSI), refaults, swap, what cgroup and machine have left.

Each reading costs a few small files of /proc and of the cgroups; see tuner.py for how often.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from flashmoe.experts.memory import group_folders, number_in, proc_fields, words_in

# What a group should have left. The budget counts on a reserve of 48 MiB, most of which stays free.
_GROUP_MARGIN: Final = 16 << 20
_GROUP_SHARE: Final = 32  # of small groups: this part of the limit
_MACHINE_SHARE: Final = 50  # of physical memory: below 2 % the kernel begins to swap


@dataclass(frozen=True, slots=True)
class Signs:
    """Since the reading before; fields as in governor.Reading."""

    stalled: float
    refaults: float
    swapped: int
    short: int


class MemorySensors:
    """Reads the signs. root: where /proc and the cgroup mounts begin (for tests).

    What the system does not offer (PSI, a cgroup) gives no sign of trouble. Raises StorageError if
    /proc cannot be read.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = monotonic) -> None:
        self._root, self._clock = root, clock
        self._pressure = next(self._pressure_files(), None)
        self._seconds, self._stalled, self._faults = self._counters()
        self._swapped = self._swap()

    @property
    def pressure_file(self) -> Path | None:
        """Where stalls are read: of the own cgroup (v2), else of the machine, None: nowhere."""
        return self._pressure

    def read(self) -> Signs:
        """The signs since the last call (the first one: since the start)."""
        before = self._seconds, self._stalled, self._faults
        self._seconds, self._stalled, self._faults = self._counters()
        elapsed = max(self._seconds - before[0], 1e-6)
        return Signs(
            stalled=(self._stalled - before[1]) / elapsed,
            refaults=(self._faults - before[2]) / elapsed,
            swapped=max(0, self._swap() - self._swapped),
            short=max([0, self._machine_short(), *self._groups_short()]),
        )

    def _pressure_files(self) -> Iterator[Path]:
        groups = (group.path / "memory.pressure" for group in group_folders(self._root))
        for path in (*groups, self._root / "proc/pressure/memory"):
            if _stalled_seconds(path) is not None:
                yield path

    def _counters(self) -> tuple[float, float, int]:
        """Now, seconds in which somebody waited for memory, major faults of ours."""
        stalled = None if self._pressure is None else _stalled_seconds(self._pressure)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        return self._clock(), stalled or 0.0, faults

    def _swap(self) -> int:
        return proc_fields(self._root / "proc/self/status").get("VmSwap", 0)

    def _machine_short(self) -> int:
        memory = proc_fields(self._root / "proc/meminfo")
        return memory["MemTotal"] // _MACHINE_SHARE - memory["MemAvailable"]

    def _groups_short(self) -> Iterator[int]:
        for group in group_folders(self._root):
            limit = number_in(group.path / group.limit_file)
            used = number_in(group.path / group.usage_file)
            if limit is not None and used is not None:
                free = limit - used + _file_cache(group.path)
                yield min(_GROUP_MARGIN, limit // _GROUP_SHARE) - free


def _stalled_seconds(path: Path) -> float | None:
    """The total of the line "some avg10=0.00 avg60=0.00 avg300=0.00 total=123" (microseconds)."""
    words = words_in(path).get("some")
    if words is None or not words[-1].startswith("total="):
        return None
    return int(words[-1].removeprefix("total=")) / 1e6


def _file_cache(group: Path) -> int:
    """Bytes of the page cache of a group and its children, which the kernel takes back first."""
    stat = words_in(group / "memory.stat")
    prefix = "total_" if "total_active_file" in stat else ""
    fields = (stat.get(f"{prefix}{kind}_file", ["0"]) for kind in ("active", "inactive"))
    return sum(int(field[0]) for field in fields)
