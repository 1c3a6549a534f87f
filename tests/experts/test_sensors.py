"""Signs of short memory, read from a made-up system (cgroups v1 and v2) and from this one."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashmoe.experts.sensors import MemorySensors
from tests.support.memory_files import GIB, GROUP_PRESSURE, MemoryFiles


class System(MemoryFiles):
    """Files of a kernel, with sensors that read them."""

    def sensors(self) -> MemorySensors:
        return MemorySensors(self.root, lambda: self.now)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_a_machine_at_rest_shows_nothing(system: System) -> None:
    system.stalls("proc/pressure/memory", 100)
    sensors = system.sensors()
    system.now = 1
    signs = sensors.read()
    assert (signs.stalled, signs.swapped) == (0, 0)


def test_stalls_are_a_share_of_the_time_between_readings(system: System) -> None:
    system.v2(limit=GIB, used=0)
    system.stalls(GROUP_PRESSURE, 100)
    sensors = system.sensors()
    system.now = 2
    system.stalls(GROUP_PRESSURE, 100.5)
    assert sensors.read().stalled == pytest.approx(0.25)
    system.now = 3
    assert sensors.read().stalled == 0


@pytest.mark.parametrize(("faults", "stalled"), [(0, 0.0), (7, 0.0), (20, 0.5)])
def test_stalls_of_the_machine_are_ours_only_beside_refaults(
    system: System, monkeypatch: pytest.MonkeyPatch, faults: int, stalled: float
) -> None:
    system.stalls("proc/pressure/memory", 100)
    sensors = system.sensors()
    system.now = 1
    system.stalls("proc/pressure/memory", 100.5)
    usage = SimpleNamespace(ru_majflt=resource.getrusage(resource.RUSAGE_SELF).ru_majflt + faults)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert sensors.read().stalled == pytest.approx(stalled)


def test_the_own_group_is_asked_before_the_machine(system: System) -> None:
    system.v2(limit=GIB, used=0)
    system.stalls("proc/pressure/memory", 0)
    system.stalls("sys/fs/cgroup/box/memory.pressure", 0)
    sensors = system.sensors()
    assert sensors.pressure_file == system.root / "sys/fs/cgroup/box/memory.pressure"


def test_no_pressure_file_is_no_pressure(system: System) -> None:
    sensors = system.sensors()
    assert sensors.pressure_file is None
    assert sensors.read().stalled == 0


def test_without_a_group_the_machine_is_asked(system: System) -> None:
    system.stalls("proc/pressure/memory", 0)
    assert system.sensors().pressure_file == system.root / "proc/pressure/memory"


def test_only_swap_since_the_start_counts(system: System) -> None:
    sensors = system.sensors()
    assert sensors.read().swapped == 0
    system.write("proc/self/status", "VmSwap: 44 kB\n")
    assert sensors.read().swapped == 4096


def test_this_machine_can_be_read() -> None:
    signs = MemorySensors().read()
    assert 0 <= signs.stalled < 10
    assert signs.refaults >= 0
