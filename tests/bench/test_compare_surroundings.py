"""Cgroups, read-ahead and the page cache around an engine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from flashmoe.bench.apart import drop_from_page_cache
from flashmoe.bench.compare.read_ahead import found_read_ahead, read_ahead, read_ahead_file
from flashmoe.bench.compare.surroundings import (
    alone,
    memory_group,
    terminate_as_interrupt,
)
from flashmoe.errors import StorageError, UsageError


def made_up_tree(root: Path) -> Path:
    """A v2 tree as the files of a plain folder: new folders in it get no files from a kernel."""
    group = root / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/a\n")
    mount = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    (root / "proc/self/mountinfo").write_text(mount)
    return group


def test_a_system_that_makes_no_group_is_a_clear_error(tmp_path: Path) -> None:
    group = made_up_tree(tmp_path)
    with (
        pytest.raises(UsageError, match="cannot make a memory cgroup") as caught,
        memory_group(1 << 30, tmp_path),
    ):
        pytest.fail("there is no such group")
    assert str(group) in str(caught.value)
    assert list(group.iterdir()) == []


def test_a_group_of_this_system() -> None:
    try:
        with memory_group(64 << 20) as group:
            assert group.processes.exists()
            peak = group.peak_bytes()
            assert peak is None or peak >= 0
            folder = group.folder
    except UsageError as error:
        pytest.skip(f"{error}")
    assert not folder.exists()


def made_up_disk(root: Path) -> Path:
    """The setting of a disk."""
    setting = root / "sys/block/vda/queue/read_ahead_kb"
    setting.parent.mkdir(parents=True)
    setting.write_text("8192\n")
    return setting


def test_what_a_killed_comparison_left_is_put_back(tmp_path: Path) -> None:
    setting = made_up_disk(tmp_path)
    killed = read_ahead(setting, root=tmp_path)
    killed.__enter__()  # and never left, as after SIGKILL
    assert setting.read_text() == "128"
    assert "left the disk's read-ahead at 128 KB: put back to 8192 KB" in found_read_ahead(
        setting, tmp_path
    )
    assert setting.read_text() == "8192\n"
    assert found_read_ahead(setting, tmp_path).startswith("the disk's read-ahead is 8192 KB")


def test_a_note_that_is_none(tmp_path: Path) -> None:
    setting = made_up_disk(tmp_path)
    note = tmp_path / "run/flashmoe/read-ahead-of-vda"
    note.parent.mkdir(parents=True)
    note.write_text("much")
    with pytest.raises(StorageError, match="is no size in KB"):
        found_read_ahead(setting, tmp_path)
    assert setting.read_text() == "8192\n"


def test_read_ahead_is_put_back_after_an_error(tmp_path: Path) -> None:
    setting = made_up_disk(tmp_path)
    seen = []

    def fail() -> None:
        with read_ahead(setting, root=tmp_path):
            seen.append(setting.read_text())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == ["128"]
    assert setting.read_text() == "8192\n"


def test_read_ahead_without_a_setting(tmp_path: Path) -> None:
    assert read_ahead_file(tmp_path, root=tmp_path) is None
    with read_ahead(None):
        assert "cannot be set" in found_read_ahead(None)


def test_a_partition_shares_the_queue_of_its_disk(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    disk, numbers = tmp_path / "sys/devices/vda", tmp_path / "sys/dev/block"
    (disk / "vda1").mkdir(parents=True)
    (disk / "queue").mkdir()
    (disk / "queue/read_ahead_kb").write_text("8192\n")
    numbers.mkdir(parents=True)
    (numbers / f"{os.major(device)}:{os.minor(device)}").symlink_to(disk / "vda1")
    assert read_ahead_file(tmp_path, root=tmp_path) == disk / "queue/read_ahead_kb"


def test_one_comparison_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with alone(folder), pytest.raises(UsageError, match="another comparison"), alone(folder):
        pytest.fail("two at once")
    with alone(folder):
        pass


def test_dropping_files(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1" * 8192)
    drop_from_page_cache([file])
    assert file.read_bytes() == b"1" * 8192
    with pytest.raises(StorageError, match="gone"):
        drop_from_page_cache([tmp_path / "gone"])


def test_termination_is_an_interrupt_inside_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
