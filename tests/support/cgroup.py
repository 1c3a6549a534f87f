"""A memory cgroup for a child process, where the system lets us make one."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A fresh cgroup, v1 or v2, with a limit in bytes. Skips the test where none can be made."""

    def __init__(self, limit: int) -> None:
        v1 = (_ROOT / "memory").is_dir()
        parent, name = (_ROOT / "memory", "limit_in_bytes") if v1 else (_ROOT, "max")
        self._path = parent / f"flashmoe-test-{os.getpid()}"
        self._events = self._path / ("memory.oom_control" if v1 else "memory.events")
        try:
            self._path.mkdir()
            (self._path / f"memory.{name}").write_text(str(limit))
        except OSError as error:
            if self._path.is_dir():
                self._path.rmdir()
            pytest.skip(f"cannot make a memory cgroup: {error}")

    def enter(self) -> None:
        """Move the calling process in."""
        (self._path / "cgroup.procs").write_text(str(os.getpid()))

    def kills(self) -> int:
        """Processes of the group that the kernel killed for want of memory."""
        fields = dict(line.split() for line in self._events.read_text().splitlines())
        return int(fields["oom_kill"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._path.rmdir()
