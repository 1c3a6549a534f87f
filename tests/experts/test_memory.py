"""System limits read from made-up /proc and cgroup trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.errors import StorageError
from flashmoe.experts.memory import Limit, read_system_memory

MEMINFO = "MemTotal:       16000 kB\nMemAvailable:    9000 kB\nHugePages_Total:       0\n"
V1 = "36 31 0:33 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/self/status", "Name:\tpython\nVmRSS:\t    120 kB\n")
    return tmp_path


def cgroup(root: Path, own: str, mounts: str) -> Limit | None:
    write(root, "proc/self/cgroup", own)
    write(root, "proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n" + mounts)
    return read_system_memory(root).cgroup


def test_meminfo_and_status_without_cgroups(root: Path) -> None:
    system = read_system_memory(root)
    assert (system.physical, system.available) == (16000 * 1024, 9000 * 1024)
    assert system.process == 120 * 1024
    assert system.cgroup is None


def test_v2_limit_of_the_group(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/b/memory.max", "5000\n")
    limit = cgroup(root, "0::/a/b\n", V2.format(top="/"))
    assert limit == Limit(5000, "cgroup limit /sys/fs/cgroup/a/b/memory.max")


def test_v2_a_parent_may_be_tighter(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/b/memory.max", "5000\n")
    write(root, "sys/fs/cgroup/a/memory.max", "4000\n")
    write(root, "sys/fs/cgroup/memory.max", "max\n")
    limit = cgroup(root, "0::/a/b\n", V2.format(top="/"))
    assert limit == Limit(4000, "cgroup limit /sys/fs/cgroup/a/memory.max")


def test_v2_memory_high_counts(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/memory.max", "5000\n")
    write(root, "sys/fs/cgroup/a/memory.high", "3000\n")
    limit = cgroup(root, "0::/a\n", V2.format(top="/"))
    assert limit == Limit(3000, "cgroup limit /sys/fs/cgroup/a/memory.high")


def test_v2_max_is_no_limit(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/memory.max", "max\n")
    assert cgroup(root, "0::/a\n", V2.format(top="/")) is None


def test_v1_limit_and_parents(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "7000\n")
    limit = cgroup(root, "5:cpu:/z\n4:memory,hugetlb:/x/y\n0::/\n", V1.format(top="/"))
    assert limit == Limit(7000, "cgroup limit /sys/fs/cgroup/memory/x/memory.limit_in_bytes")


def test_v1_writes_none_as_a_huge_number(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n")
    assert cgroup(root, "4:memory:/x\n", V1.format(top="/")) is None


def test_both_versions_at_once(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "7000\n")
    write(root, "sys/fs/cgroup/u/memory.max", "6000\n")
    limit = cgroup(root, "4:memory:/x\n0::/u\n", V1.format(top="/") + V2.format(top="/"))
    assert limit is not None
    assert limit.nbytes == 6000


@pytest.mark.parametrize(
    ("top", "group"),
    [
        ("/docker/1f", "/docker/1f"),  # the container's own group is mounted
        ("/docker/1f", "/"),  # a cgroup namespace: our group is named from inside
        ("/docker/1f", "/other"),  # a mount of some other group: the best that can be seen
        ("/", "/../../outside"),
    ],
)
def test_paths_in_containers(root: Path, top: str, group: str) -> None:
    write(root, "sys/fs/cgroup/memory.max", "8000\n")
    write(root, "sys/outside/memory.max", "1\n")
    limit = cgroup(root, f"0::{group}\n", V2.format(top=top))
    assert limit == Limit(8000, "cgroup limit /sys/fs/cgroup/memory.max")


def test_a_group_below_the_mounted_one(root: Path) -> None:
    write(root, "sys/fs/cgroup/job/memory.max", "8000\n")
    limit = cgroup(root, "0::/docker/1f/job\n", V2.format(top="/docker/1f"))
    assert limit == Limit(8000, "cgroup limit /sys/fs/cgroup/job/memory.max")


def test_a_mount_point_with_a_space(root: Path) -> None:
    write(root, "my groups/a/memory.max", "1234\n")
    limit = cgroup(root, "0::/a\n", "41 31 0:38 / /my\\040groups rw - cgroup2 none rw\n")
    assert limit == Limit(1234, "cgroup limit /my groups/a/memory.max")


def test_a_broken_limit_file_is_no_limit(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/memory.max", "\n")
    assert cgroup(root, "0::/a\n", V2.format(top="/")) is None


def test_no_proc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="meminfo: cannot be read"):
        read_system_memory(tmp_path)


def test_this_system_can_be_read() -> None:
    system = read_system_memory()
    assert 0 < system.process < system.physical
    assert 0 < system.available <= system.physical
