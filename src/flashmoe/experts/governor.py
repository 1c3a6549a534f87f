"""Decides how many slots the automatic cache uses, from what was measured. Pure: no clock, no I/O.

Two rules, in this order:
1. Memory is short (others stall for it, pages of ours come back from the disk, or little is free):
   shrink at once. When all has been calm for a while grow back in steps, up to the budget, into
   memory that is free. A size at which trouble came back is tried again only after twice the calm.
2. Otherwise stay where tokens per second peak. A larger cache hits more, but where memory is
   slower than it looks (a host that swaps, a balloon) it is not faster. So now and then another
   size is tried, and kept only if it beats the present one before and after (A, B, A) by more than
   noise explains: drift of the load looks like a gain once, not twice in opposite directions.
   After a trial that failed, the time to the next doubles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean, variance
from typing import Final

from flashmoe.stats import PRESSURE


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen since the reading before, a second ago or less.

    tokens_per_second: of decode alone; None if a prompt was run or nothing was decoded.
    stalled: share of the time (0 to 1) in which somebody waited for memory. refaults: pages of ours
    per second that had to come back from the disk. swapped: bytes of ours that are swapped out.
    room: bytes that may be taken until memory is short; negative: so many must be given back.
    """

    tokens_per_second: float | None
    stalled: float = 0.0
    refaults: float = 0.0
    swapped: int = 0
    room: int = 2**62


class Reason(Enum):
    """Why the size changes."""

    PRESSURE = PRESSURE
    CALM = "memory is free again"
    SPEED = "tokens per second"


@dataclass(frozen=True, slots=True)
class Decision:
    """Use this many slots from now on."""

    slots: int
    reason: Reason


STALLED: Final = 0.01
"""A machine that is not short of memory stalls for none at all; 1 % is far above noise."""
REFAULTS: Final = 32.0
"""Per second. Code that runs for the first time faults too, but not for seconds on end."""
_STEP: Final = 1 / 8  # of the budget; a step must be large enough for its effect to be measured
_WORTHWHILE: Final = 1 / 4  # of a step back; less is not worth moving slots about
_CALM: Final = 5  # readings without trouble before the first step back
_LONGEST_CALM: Final = 320
_FORGIVEN: Final = 4  # times the calm, at the full budget, after which earlier trouble is forgotten
_SETTLE: Final = 3  # readings after a change that still show the misses of the change
_WINDOW: Final = 10  # readings per side of a comparison
_FIRST_TRIAL: Final = 60  # readings before the first trial
_LONGEST_PAUSE: Final = 3840
_GAIN: Final = 0.03  # a gain below this is not worth a change
_SIGMAS: Final = 4.0  # at 3, noise alone passed once in some 500 hours of decoding


class Governor:
    """Feed it readings; it says when to change the number of slots.

    floor, budget: the least and the most slots. slot_bytes: of one slot.
    """

    def __init__(self, floor: int, budget: int, slot_bytes: int) -> None:
        assert 1 <= floor <= budget, "the floor is above the budget"
        self.slots = budget
        self._floor, self._budget, self._slot_bytes = floor, budget, slot_bytes
        self._step = max(1, round(budget * _STEP))
        self._safe = budget  # the most slots that rule 1 allows
        self._wait, self._calm = _CALM, 0
        self._grew = False  # a step back whose end is not known yet
        self._swapped = 0
        self._climb = _Climb()

    def take(self, reading: Reading) -> Decision | None:
        """The new number of slots, or None to stay."""
        in_trouble, self._swapped = self._in_trouble(reading), reading.swapped
        if in_trouble:
            return self._shrink(max(0, -reading.room))
        self._calm += 1
        if self._safe < self._budget:
            return self._grow_back(reading.room) if self._calm >= self._wait else None
        if self._calm >= _FORGIVEN * self._wait:
            self._wait, self._grew = _CALM, False
        return self._seek_speed(reading.tokens_per_second, reading.room)

    def _in_trouble(self, reading: Reading) -> bool:
        return (
            reading.room < 0
            or reading.swapped > self._swapped
            or reading.stalled > STALLED
            or reading.refaults > REFAULTS
        )

    def _shrink(self, short: int) -> Decision | None:
        if self._grew:
            self._wait = min(2 * self._wait, _LONGEST_CALM)
        self._calm, self._grew = 0, False
        self._climb = _Climb()
        missing = -(-short // self._slot_bytes)
        return self._move_safe(self.slots - max(self._step, missing))

    def _grow_back(self, room: int) -> Decision | None:
        wanted = min(self._step, self._budget - self.slots)
        fitting = min(wanted, room // self._slot_bytes)
        if fitting < wanted * _WORTHWHILE:
            return None
        self._calm, self._grew = 0, True
        return self._move_safe(self.slots + fitting, Reason.CALM)

    def _move_safe(self, slots: int, reason: Reason = Reason.PRESSURE) -> Decision | None:
        self._safe = self._clamp(slots)
        return self._move(self._safe, reason)

    def _move(self, slots: int, reason: Reason) -> Decision | None:
        if slots == self.slots:
            return None
        self.slots = slots
        return Decision(slots, reason)

    def _seek_speed(self, speed: float | None, room: int) -> Decision | None:
        if speed is None:
            return None
        verdict = self._climb.take(speed, can_grow=self.slots < self._budget)
        if verdict is None:
            return None
        change = min(verdict * self._step, room // self._slot_bytes)
        return self._move(self._clamp(self.slots + change), Reason.SPEED)

    def _clamp(self, slots: int) -> int:
        return max(self._floor, min(slots, self._budget))


class _Climb:
    """Hill climbing by trials A, B, A: says by how many steps to change the size now."""

    def __init__(self) -> None:
        self._sides: list[list[float]] = [[]]  # speeds at A, at B, at A again
        self._skip, self._pause = _SETTLE, _FIRST_TRIAL
        self._idle = 0
        self._direction = -1

    def take(self, speed: float, can_grow: bool) -> int | None:
        """The steps (up is positive) to change the size by, or None."""
        if self._skip:
            self._skip -= 1
            return None
        self._idle += 1
        if len(self._sides) == 1 and self._idle < self._pause:
            self._sides[0] = [*self._sides[0][1 - _WINDOW :], speed]
            return None
        return self._measure(speed, can_grow)

    def _measure(self, speed: float, can_grow: bool) -> int | None:
        side = self._sides[-1]
        side.append(speed)
        if len(side) < _WINDOW:
            return None
        self._skip = _SETTLE
        if len(self._sides) == 1:
            self._direction = self._direction if can_grow else -1
            self._sides[0] = side[-_WINDOW:]
            self._sides.append([])
            return self._direction
        if len(self._sides) == 2:
            return self._after_trial()
        return self._verdict()

    def _after_trial(self) -> int:
        """Back to A; without a gain in the first comparison that ends the trial."""
        here, there = self._sides
        if gains(here, there):
            self._sides.append([])
            return -self._direction
        return -self._end(success=False)

    def _verdict(self) -> int | None:
        _, there, again = self._sides
        if gains(again, there):
            return self._end(success=True)
        self._end(success=False)
        return None

    def _end(self, success: bool) -> int:
        """Start anew; returns the direction of the trial."""
        tried = self._direction
        self._sides, self._idle = [[]], 0
        self._pause = _FIRST_TRIAL if success else min(2 * self._pause, _LONGEST_PAUSE)
        self._direction = tried if success else -tried
        return tried


def gains(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether `after` is faster by 3 % and by four standard errors of the difference."""
    gain = fmean(after) - fmean(before)
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return gain > max(_GAIN * fmean(before), _SIGMAS * error)
