"""Signs of short memory, read from a made-up system (cgroups v1 and v2) and from this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.experts.sensors import MemorySensors

GIB, MIB = 1 << 30, 1 << 20


class System:
    """Files of a kernel under a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0.0
        self.memory(total=8 * GIB, available=4 * GIB)
        self.write("proc/self/status", "VmRSS: 100 kB\nVmSwap: 40 kB\n")
        self.write("proc/self/cgroup", "")
        self.write("proc/self/mountinfo", "")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def memory(self, total: int, available: int) -> None:
        lines = f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\n"
        self.write("proc/meminfo", lines)

    def stalls(self, path: str, seconds: float) -> None:
        line = "avg10=0.00 avg60=0.00 avg300=0.00 total="
        self.write(path, f"some {line}{round(seconds * 1e6)}\nfull {line}0\n")

    def v1(self, limit: int, used: int, cached: int) -> None:
        self.write("proc/self/cgroup", "4:memory:/box\n")
        mount = "/sys/fs/cgroup/memory"
        self.write("proc/self/mountinfo", f"30 25 0:1 / {mount} rw - cgroup cgroup rw,memory\n")
        self.write(f"{mount[1:]}/box/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{mount[1:]}/box/memory.usage_in_bytes", f"{used}\n")
        stat = (
            f"active_file 7\ntotal_active_file {cached // 2}\ntotal_inactive_file {cached // 2}\n"
        )
        self.write(f"{mount[1:]}/box/memory.stat", stat)

    def v2(self, limit: int, used: int) -> None:
        self.write("proc/self/cgroup", "0::/box\n")
        self.write("proc/self/mountinfo", "30 25 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.write("sys/fs/cgroup/box/memory.max", f"{limit}\n")
        self.write("sys/fs/cgroup/box/memory.current", f"{used}\n")
        self.write("sys/fs/cgroup/box/memory.stat", "active_file 0\ninactive_file 0\n")

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
    assert (signs.stalled, signs.swapped, signs.short) == (0, 0, 0)


def test_stalls_are_a_share_of_the_time_between_readings(system: System) -> None:
    system.stalls("proc/pressure/memory", 100)
    sensors = system.sensors()
    assert sensors.pressure_file == system.root / "proc/pressure/memory"
    system.now = 2
    system.stalls("proc/pressure/memory", 100.5)
    assert sensors.read().stalled == pytest.approx(0.25)
    system.now = 3
    assert sensors.read().stalled == 0


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


def test_only_swap_since_the_start_counts(system: System) -> None:
    sensors = system.sensors()
    assert sensors.read().swapped == 0
    system.write("proc/self/status", "VmSwap: 44 kB\n")
    assert sensors.read().swapped == 4096


def test_a_machine_with_less_than_two_percent_left_is_short(system: System) -> None:
    sensors = system.sensors()
    system.memory(total=100 * GIB, available=GIB)
    assert sensors.read().short == GIB


@pytest.mark.parametrize(("used", "cached"), [(GIB - 20 * MIB, 0), (GIB, 20 * MIB)])
def test_a_group_with_enough_left_is_not_short(system: System, used: int, cached: int) -> None:
    system.v1(limit=GIB, used=used, cached=cached)
    assert system.sensors().read().short == 0


def test_a_group_near_its_limit_is_short(system: System) -> None:
    system.v1(limit=GIB, used=GIB - 6 * MIB, cached=0)
    assert system.sensors().read().short == 10 * MIB
    system.v2(limit=64 * MIB, used=63 * MIB)
    assert system.sensors().read().short == MIB  # of a small group a 32nd should be free


def test_this_machine_can_be_read() -> None:
    signs = MemorySensors().read()
    assert 0 <= signs.stalled < 10
    assert signs.refaults >= 0
