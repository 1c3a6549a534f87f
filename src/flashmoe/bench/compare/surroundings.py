"""What an engine runs in: a memory cgroup, and nobody beside it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from flashmoe.errors import StorageError, UsageError
from flashmoe.experts.memory import GroupFolder, group_folders
from flashmoe.files import storage_errors

_GROUP: Final = "flashmoe-compare-"
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
        _remove_left_over(parent.path)
        folder = parent.path / f"{_GROUP}{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
            continue
        try:
            _set_limit(folder / parent.limit_files[0], nbytes)
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


def _remove_left_over(parent: Path) -> None:
    """Remove groups of comparisons that were killed; those in use or not ours stay."""
    for folder in parent.glob(f"{_GROUP}*"):
        with suppress(OSError):
            folder.rmdir()


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
