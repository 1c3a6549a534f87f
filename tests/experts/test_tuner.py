"""From scripted signs to the size of the cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest

from flashmoe.experts.governor import Governor, Reading, Reason
from flashmoe.experts.sensors import Signs
from flashmoe.experts.tuner import LOOK_S, PERIOD_S, CacheTuner

CALM = Signs(stalled=0.0, refaults=0.0, swapped=0)
STALLED = Signs(stalled=0.4, refaults=0.0, swapped=0)


@dataclass
class FakeSize:
    slots: int = 80
    slot_bytes: int = 4096

    def resize(self, slots: int) -> None:
        self.slots = slots


@dataclass
class Script:
    signs: list[Signs]
    reads: int = 0
    looks: int = 0
    left: int = 1 << 40

    def room(self) -> int:
        self.looks += 1
        return self.left

    def read(self) -> Signs:
        self.reads += 1
        return self.signs[min(self.reads, len(self.signs)) - 1]


class Listener(Governor):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(8, 80, 4096)
        self.heard: list[Reading] = []

    def take(self, reading: Reading) -> None:
        self.heard.append(reading)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    governor: Governor
    signs: list[Signs]
    clock: Clock = field(default_factory=Clock)
    size: FakeSize = field(default_factory=FakeSize)

    def __post_init__(self) -> None:
        self.sensors = Script(self.signs)
        self.tuner = CacheTuner(self.size, self.governor, self.sensors, self.clock)

    def passes(self, *tokens: int, seconds: float = 0.25) -> None:
        for count in tokens:
            self.clock.now += seconds
            self.tuner.after_pass(count, seconds)


def test_pressure_shrinks_and_calm_restores(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(Governor(8, 80, 4096), [STALLED, STALLED, CALM])
    with caplog.at_level(logging.INFO):
        rig.passes(*[1] * 8)
        assert rig.size.slots == 60
        rig.passes(*[1] * 80)
    assert rig.size.slots == 80
    assert rig.tuner.changes == {Reason.PRESSURE.value: 2, Reason.CALM.value: 2}
    assert caplog.messages[0] == "expert cache: 80 -> 70 slots (280.0 KiB): memory is short"
    assert caplog.messages[-1].startswith("expert cache: 70 -> 80 slots")


def test_the_sensors_are_read_about_once_a_second() -> None:
    rig = Rig(Governor(8, 80, 4096), [CALM])
    rig.passes(*[1] * 1000, seconds=0.01)
    assert rig.sensors.reads <= 10 / PERIOD_S + 1
    assert rig.sensors.looks <= 10 / LOOK_S + 1


def test_memory_that_runs_out_is_seen_between_readings() -> None:
    rig = Rig(Governor(8, 80, 4096), [CALM])
    rig.passes(1, 1, seconds=LOOK_S)
    assert rig.size.slots == 80
    rig.sensors.left = -20 * 4096
    rig.passes(1, seconds=LOOK_S)
    assert rig.size.slots == 60


def test_speed_is_of_passes_alone_and_not_of_prompts() -> None:
    governor = Listener()
    rig = Rig(governor, [CALM])
    rig.passes(1, 1, 1, 1)
    rig.clock.now += 100  # the user thinks
    rig.passes(1, seconds=0.5)
    rig.passes(1, 64, 1, 1, 1)
    speeds = [reading.tokens_per_second for reading in governor.heard]
    assert speeds == [4.0, 2.0, None]
