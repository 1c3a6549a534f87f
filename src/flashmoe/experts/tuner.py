"""Between passes: asks the sensors, and applies what the governor says.

Speed and stalls are read about once a second. Whether memory is left is looked up more often: a
neighbour that starts takes tens of megabytes in a second.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

from flashmoe.experts.governor import Decision, Governor, Reading
from flashmoe.experts.interrupts import uninterrupted
from flashmoe.experts.sensors import Signs
from flashmoe.sizes import format_size

_log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
LOOK_S: Final = 0.2
"""Looks cost 0.3 ms each, the rest of a reading 0.1 ms: 0.2 % of the time."""


class Resizable(Protocol):
    """What is tuned (ExpertCache)."""

    @property
    def slots(self) -> int: ...

    @property
    def slot_bytes(self) -> int: ...

    def resize(self, slots: int) -> None: ...


class Sensors(Protocol):
    """MemorySensors, or a script of signs."""

    def read(self) -> Signs: ...

    def room(self) -> int: ...


@dataclass
class CacheTuner:
    """Fits the cache to the machine while it runs.

    changes: how often the size was changed, by reason (governor.Reason.value).
    """

    cache: Resizable
    governor: Governor
    sensors: Sensors
    clock: Callable[[], float] = monotonic
    changes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._begin_window()
        self._next_look = self.clock() + LOOK_S

    def after_pass(self, tokens: int, seconds: float) -> None:
        """Count a pass of `tokens` that took `seconds`; a pass of several tokens is a prompt's."""
        if tokens == 1:
            self._tokens += 1
            self._seconds += seconds
        else:
            self._prompt = True
        if self.clock() >= self._next_look:
            with uninterrupted():  # the governor counts on what it decided being done
                self._look()

    def _look(self) -> None:
        room = self.sensors.room()
        if room < 0 or self.clock() >= self._due:
            decision = self.governor.take(self._reading(room))
            if decision is not None:
                self._apply(decision)
            self._begin_window()
        self._next_look = self.clock() + LOOK_S

    def _begin_window(self) -> None:
        self._tokens, self._seconds, self._prompt = 0, 0.0, False
        self._due = self.clock() + PERIOD_S

    def _reading(self, room: int) -> Reading:
        signs = self.sensors.read()
        compared = self._seconds > 0 and not self._prompt
        return Reading(
            tokens_per_second=self._tokens / self._seconds if compared else None,
            stalled=signs.stalled,
            refaults=signs.refaults,
            swapped=signs.swapped,
            room=room,
        )

    def _apply(self, decision: Decision) -> None:
        before = self.cache.slots
        self.cache.resize(decision.slots)
        self.changes[decision.reason.value] += 1
        _log.info(
            "expert cache: %d -> %d slots (%s): %s",
            before,
            decision.slots,
            format_size(decision.slots * self.cache.slot_bytes),
            decision.reason.value,
        )
