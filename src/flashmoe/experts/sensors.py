"""Signs that memory is short: stalls (PSI), refaults, swap, what cgroup and machine have left.

Each reading costs a few small files of /proc and of the cgroups; see tuner.py for how often.
Where only the machine's stalls are known they may be others', in a cgroup of theirs, while there is
memory enough for us: then they count only if pages of ours had to come back, too.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from flashmoe.experts.headroom import Headroom
from flashmoe.experts.memory import group_folders, proc_fields, words_in

_MACHINE_PRESSURE: Final = "proc/pressure/memory"
_OWN_REFAULTS: Final = 8.0  # per second, without which the machine's stalls are not ours


@dataclass(frozen=True, slots=True)
class Signs:
    """Since the reading before; fields as in governor.Reading."""

    stalled: float
    refaults: float
    swapped: int


class MemorySensors:
    """Reads the signs. root: where /proc and the cgroup mounts begin (for tests).

    What the system does not offer (PSI, a cgroup) gives no sign of trouble. Raises StorageError if
    /proc cannot be read.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = monotonic) -> None:
        self._root, self._clock = root, clock
        self._pressure = next(self._pressure_files(), None)
        self._machine_wide = self._pressure == root / _MACHINE_PRESSURE
        self._seconds, self._stalled, self._faults = self._counters()
        self._swapped = self._swap()
        self._headroom = Headroom(root)

    @property
    def pressure_file(self) -> Path | None:
        """Where stalls are read: of the own cgroup (v2), else of the machine, None: nowhere."""
        return self._pressure

    def read(self) -> Signs:
        """The signs since the last call (the first one: since the start)."""
        before = self._seconds, self._stalled, self._faults
        self._seconds, self._stalled, self._faults = self._counters()
        elapsed = max(self._seconds - before[0], 1e-6)
        stalled = (self._stalled - before[1]) / elapsed
        refaults = (self._faults - before[2]) / elapsed
        return Signs(
            stalled=0.0 if self._machine_wide and refaults < _OWN_REFAULTS else stalled,
            refaults=refaults,
            swapped=max(0, self._swap() - self._swapped),
        )

    def room(self) -> int:
        """Bytes that may be taken until memory is short; negative: see Headroom.read."""
        return self._headroom.read()

    def _pressure_files(self) -> Iterator[Path]:
        groups = (group.path / "memory.pressure" for group in group_folders(self._root))
        for path in (*groups, self._root / _MACHINE_PRESSURE):
            if _stalled_seconds(path) is not None:
                yield path

    def _counters(self) -> tuple[float, float, int]:
        """Now, seconds in which somebody waited for memory, major faults of ours."""
        stalled = None if self._pressure is None else _stalled_seconds(self._pressure)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        return self._clock(), stalled or 0.0, faults

    def _swap(self) -> int:
        return proc_fields(self._root / "proc/self/status").get("VmSwap", 0)


def _stalled_seconds(path: Path) -> float | None:
    """The total of the line "some avg10=0.00 avg60=0.00 avg300=0.00 total=123" (microseconds)."""
    words = words_in(path).get("some")
    if words is None or not words[-1].startswith("total="):
        return None
    return int(words[-1].removeprefix("total=")) / 1e6
