"""What an engine runs in: a memory cgroup, a cold page cache, the disk's read-ahead."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from flashmoe.errors import StorageError, UsageError
from flashmoe.experts.memory import GroupFolder, group_folders
from flashmoe.files import storage_errors

USUAL_READ_AHEAD_KB: Final = 128
_PAGE: Final = 4096
_REMOVAL_SECONDS: Final = 5.0


def limit_bytes(share: float, model_bytes: int) -> int:
    """The memory limit for a share of the model, in whole pages."""
    return int(share * model_bytes) // _PAGE * _PAGE


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup of our own. Processes join by writing their id to `processes`."""

    folder: Path
    peak_file: str

    @property
    def processes(self) -> Path:
        return self.folder / "cgroup.procs"

    def peak_bytes(self) -> int | None:
        """The most memory it has held, page cache included; None where the kernel does not say."""
        peak = self.folder / self.peak_file
        return int(peak.read_text()) if peak.exists() else None


@contextmanager
def memory_group(nbytes: int, root: Path = Path("/")) -> Iterator[MemoryGroup]:
    """A group limited to nbytes, as near to our own in the hierarchy as the system allows.

    root: where /proc and the cgroup mounts begin (for tests). Raises UsageError if it allows none.
    """
    group = _make_group(nbytes, group_folders(root))
    try:
        yield group
    finally:
        _remove(group.folder)


def _make_group(nbytes: int, parents: Iterable[GroupFolder]) -> MemoryGroup:
    refused = []
    for parent in parents:
        folder = parent.path / f"flashmoe-compare-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
            continue
        try:
            _set_limit(folder / parent.limit_file, nbytes)
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
            _remove(folder)
            continue
        return MemoryGroup(folder, parent.peak_file)
    raise UsageError(
        "cannot make a memory cgroup",
        got="; ".join(refused) or "no memory hierarchy",
        hint="Run as root where cgroups can be made, or only rows without a limit (--only).",
    )


def _set_limit(file: Path, nbytes: int) -> None:
    # Not created if absent: in a v2 group without the memory controller there is no such file.
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(nbytes).encode())
    finally:
        os.close(fd)


def _remove(folder: Path) -> None:
    """Remove a group; its last process may still be on its way out."""
    end = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise StorageError(
                    "cannot remove the cgroup", where=folder, got=error.strerror
                ) from error
        time.sleep(0.05)


def read_ahead_file(path: Path, root: Path = Path("/")) -> Path | None:
    """The setting of the disk that path lies on; None if it has none that can be written."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    block = (root / "sys/dev/block" / number).resolve()
    for folder in (block, block.parent):  # a partition shares the queue of its disk
        file = folder / "queue/read_ahead_kb"
        if os.access(file, os.W_OK):
            return file
    return None


@contextmanager
def read_ahead(file: Path | None, kilobytes: int = USUAL_READ_AHEAD_KB) -> Iterator[None]:
    """Set the read-ahead of a disk, and put the old value back; None: leave it alone."""
    if file is None:
        yield
        return
    before = file.read_text()
    file.write_text(str(kilobytes))
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a second comparison with the same models: the two would measure each other, and each
    would put back the other's read-ahead. Raises UsageError."""
    with storage_errors("cannot be opened", folder):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(fd, folder)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError("another comparison is running", where=folder) from error


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that what was set is put back."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
