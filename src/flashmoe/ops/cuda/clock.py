"""Device time per phase: an event wherever the phase changes, read when the pass is over.

A captured graph keeps such events too, if it was captured under `marked`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch

from flashmoe.ops.clock import PhaseClock

# Phases of a step that are about tiers: waits for copies to the card, for the disk and for the
# CPU's share of the experts; the host's planning; of a step in pieces, all of the card's own work.
COPIES, DISK, HOST_SHARE = "copies", "disk_wait", "host_experts"
PLANNING, CARD = "planning", "card"

Mark = tuple[str, torch.cuda.Event]
"""A phase, and when it began."""


class DeviceClock(PhaseClock):
    """As PhaseClock, for work that runs behind the host."""

    def __init__(self, device: torch.device) -> None:
        self._marks: list[Mark] = []
        self._captured: list[Mark] | None = None
        self._timed = device.type == "cuda"
        super().__init__()

    @property
    def phase(self) -> str:
        """The phase that work launched from now on belongs to."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        if not self._timed:
            return
        capturing = torch.cuda.is_current_stream_capturing()
        marks = self._captured if capturing else self._marks
        if marks is not None:
            event = torch.cuda.Event(enable_timing=True, external=capturing)
            event.record()
            marks.append((name, event))

    @contextmanager
    def marked(self) -> Iterator[list[Mark]]:
        """What is captured inside records an event at each change of phase when it is replayed."""
        marks: list[Mark] = []
        self._captured = marks
        try:
            yield marks
        finally:
            self._captured = None

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call; waits for the device."""
        if self._marks:
            self.phase = "other"
            self._marks[-1][1].synchronize()
            for name, seconds in durations(self._marks).items():
                self.add(seconds, name)
            self._marks.clear()
        return super().take()


def durations(marks: Sequence[Mark]) -> dict[str, float]:
    """Seconds per phase up to the last mark, which must have been reached."""
    total: dict[str, float] = {}
    for (name, begin), (_, end) in pairwise(marks):
        total[name] = total.get(name, 0.0) + begin.elapsed_time(end) / 1000
    return total


def split_waits(phases: dict[str, float], disk: float, host: float) -> dict[str, float]:
    """The seconds in which the card waited (COPIES), by what it waited for.

    disk, host: seconds in which the host waited for reads and computed experts meanwhile; what they
    do not explain is the bus.
    """
    left = phases.get(COPIES, 0.0)
    waits = {}
    for name, seconds in ((DISK, disk), (HOST_SHARE, host)):
        waits[name] = min(left, seconds)
        left -= waits[name]
    return {**phases, COPIES: left, **waits}
