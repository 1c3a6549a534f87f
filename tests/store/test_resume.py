"""Interrupted packs: killed, out of space, torn journal. The result is always the same bytes."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flashmoe import files
from flashmoe.errors import PackError, StorageError, UsageError
from flashmoe.store import pack as pack_module
from flashmoe.store.journal import Journal
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.plan import PackOptions
from tests.store.support import OPTIONS, contents
from tests.support.tiny_checkpoints import Layout, write_checkpoint


class Killed(BaseException):
    """Stands in for kill -9: nothing in the program may handle it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", "qwen3_moe", Layout(shards=2))


@pytest.fixture
def expected(tmp_path: Path, source: Path) -> dict[str, bytes]:
    pack_checkpoint(source, tmp_path / "expected", OPTIONS)
    return contents(tmp_path / "expected")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut could tell the difference, and syncing thousands of times takes minutes."""
    monkeypatch.setattr(files.os, "fdatasync", lambda fd: None)


def pack_until_write(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> bool:
    """Packs, killed at the given write; True if it got through."""
    real, writes = os.pwrite, 0

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal writes
        writes += 1
        if writes == limit:
            real(fd, data[: len(data) // 2], offset)
            raise Killed
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "pwrite", pwrite)
        try:
            pack_checkpoint(source, destination, OPTIONS, sync_bytes=1)
        except Killed:
            return False
    return True


def test_killed_at_any_write(
    tmp_path: Path, source: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, complete = 1, False
    while not complete:
        destination = tmp_path / f"killed-{limit}"
        complete = pack_until_write(source, destination, monkeypatch, limit)
        if not complete:
            assert not destination.exists()
            pack_checkpoint(source, destination, OPTIONS)
        assert contents(destination) == expected
        shutil.rmtree(destination)
        limit += 7
    assert limit > 50


def test_resuming_does_not_repeat_finished_work(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_until_write(source, tmp_path / "p", monkeypatch, 60)
    first: list[int] = []
    pack_checkpoint(source, tmp_path / "p", OPTIONS, lambda done, total: first.append(done))
    assert first[0] > 0
    written: list[int] = []
    real = os.pwrite
    pack_until_write(source, tmp_path / "q", monkeypatch, 60)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        written.append(len(data))
        return real(fd, data, offset)

    monkeypatch.setattr(files.os, "pwrite", pwrite)
    pack_checkpoint(source, tmp_path / "q", OPTIONS)
    size = sum(len(data) for data in contents(tmp_path / "q").values())
    assert sum(written) < 0.8 * size


_PACK = """
import sys
from pathlib import Path
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.plan import PackOptions
options = PackOptions.parse("q4", "q8", 32)
print("ready", flush=True)
pack_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), options, sync_bytes=10_000)
"""


def test_kill_9_at_random_moments(tmp_path: Path, source: Path, expected: dict[str, bytes]) -> None:
    rng, kills = random.Random(5), 0
    for number in range(3):
        destination, patience = tmp_path / f"d{number}", 0.05
        while not destination.exists():
            command = [sys.executable, "-c", _PACK, str(source), str(destination)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, patience))
            patience *= 1.3
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            process.stdout.close()
        assert contents(destination) == expected
    assert kills > 0


def test_disk_full_midway_is_reported_and_resumed(
    tmp_path: Path, source: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = os.pwrite, 60_000

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= len(data)
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "pwrite", pwrite)
        with pytest.raises(StorageError, match=r"No space left.*run the same command again"):
            pack_checkpoint(source, tmp_path / "p", OPTIONS)
    assert not (tmp_path / "p").exists()
    pack_checkpoint(source, tmp_path / "p", OPTIONS)
    assert contents(tmp_path / "p") == expected


def test_file_size_limit_of_the_system(tmp_path: Path, source: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            pack_checkpoint(source, tmp_path / "p", OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pack_checkpoint(source, tmp_path / "p", OPTIONS)


def test_disk_space_is_checked_first(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"not enough disk space; expected \d+ bytes free, got"):
        pack_checkpoint(source, tmp_path / "p", OPTIONS)


def test_other_options_do_not_mix(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_until_write(source, tmp_path / "p", monkeypatch, 40)
    with pytest.raises(UsageError, match=r"p\.partial: an unfinished pack with other options"):
        pack_checkpoint(source, tmp_path / "p", PackOptions.parse("q8", "q8", 32))


def test_a_changed_source_does_not_mix(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_until_write(source, tmp_path / "p", monkeypatch, 40)
    os.utime(source / "model-00001-of-00002.safetensors", ns=(1, 1))
    with pytest.raises(UsageError, match="Delete that directory"):
        pack_checkpoint(source, tmp_path / "p", OPTIONS)


def test_a_lost_data_file_is_written_again(
    tmp_path: Path, source: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_until_write(source, tmp_path / "p", monkeypatch, 60)
    (tmp_path / "p.partial" / "pack" / "resident.safetensors").unlink()
    pack_checkpoint(source, tmp_path / "p", OPTIONS)
    assert contents(tmp_path / "p") == expected


def test_a_lost_data_file_and_another_kill(
    tmp_path: Path, source: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has its full size at once: nothing but the journal tells that it is empty."""
    pack_until_write(source, tmp_path / "p", monkeypatch, 60)
    (tmp_path / "p.partial" / "pack" / "resident.safetensors").unlink()
    pack_until_write(source, tmp_path / "p", monkeypatch, 8)
    pack_checkpoint(source, tmp_path / "p", OPTIONS)
    assert contents(tmp_path / "p") == expected


def test_killed_before_the_journal_was_removed(
    tmp_path: Path, source: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack has its name, and its journal is still there when somebody deletes it."""

    def killed(self: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pack_module.Path, "unlink", killed)
        with pytest.raises(Killed):
            pack_checkpoint(source, tmp_path / "p", OPTIONS)
    shutil.rmtree(tmp_path / "p")
    pack_until_write(source, tmp_path / "p", monkeypatch, 8)
    pack_checkpoint(source, tmp_path / "p", OPTIONS)
    assert contents(tmp_path / "p") == expected


def test_two_packs_at_once(tmp_path: Path, source: Path) -> None:
    (tmp_path / "p.partial").mkdir()
    journal = Journal(tmp_path / "p.partial" / "journal", "plan")
    with pytest.raises(UsageError, match="another pack is running"):
        pack_checkpoint(source, tmp_path / "p", OPTIONS)
    journal.close()


# The journal


def reopened(path: Path) -> dict[str, int]:
    journal = Journal(path, "plan")
    journal.close()
    return journal.done


def test_journal_remembers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "plan")
    journal.append({"a": 1})
    journal.append({"b": 2, "c": 3})
    journal.close()
    assert reopened(tmp_path / "j") == {"a": 1, "b": 2, "c": 3}


def test_journal_forgets(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "plan")
    journal.append({"a": 1, "b": 2, "c": 3})
    journal.close()
    journal = Journal(tmp_path / "j", "plan")
    journal.forget({"b", "x"})
    assert journal.done == {"a": 1, "c": 3}
    journal.append({"d": 4})
    journal.close()
    assert reopened(tmp_path / "j") == {"a": 1, "c": 3, "d": 4}


def test_journal_drops_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "plan")
    journal.append({"a": 1, "b": 2})
    journal.close()
    whole = (tmp_path / "j").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "j").write_bytes(whole[:length])
        assert reopened(tmp_path / "j") in ({}, {"a": 1}, {"a": 1, "b": 2})
        assert (tmp_path / "j").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("line", [b"junk", b'{"item": 7, "crc32c": 1}', b'{"item": "a"}'])
def test_damaged_journal(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "j").write_bytes(b'{"plan": "plan"}\n' + line + b"\n")
    with pytest.raises(PackError, match="j"):
        Journal(tmp_path / "j", "plan")
