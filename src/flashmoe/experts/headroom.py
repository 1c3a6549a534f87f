"""How much memory may still be taken: of the machine, and of each cgroup that holds the process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashmoe.experts.memory import GroupFolder, group_folders, number_in, proc_fields, words_in

_GROUP_SHARE: Final = 16  # of a group's limit should stay free,
_GROUP_MARGIN: Final = 32 << 20  # at most this: the budget's reserve is 48 MiB, most of it free
_MACHINE_SHARE: Final = 50  # of physical memory: below 2 % the kernel begins to swap
_LOOKAHEAD: Final = 2  # readings: the next one may be late, and giving memory back takes time


@dataclass(frozen=True, slots=True)
class _Pool:
    """Memory with a limit. taken: bytes that the kernel cannot have back at once. margin: bytes
    that should stay free."""

    where: Path
    limit: int
    taken: int
    margin: int


class Headroom:
    """Asks the kernel, and looks ahead: what others took since the last reading they may take
    again before the next. root: where /proc and the cgroup mounts begin (for tests)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._groups = list(group_folders(root))
        self._others: dict[Path, int] = {}

    def read(self) -> int:
        """Bytes that may be taken until memory is short; negative: so many must be given back.

        Raises StorageError if /proc cannot be read.
        """
        own = proc_fields(self._root / "proc/self/status").get("RssAnon", 0)
        return min(self._left(pool, own) for pool in self._pools())

    def _left(self, pool: _Pool, own: int) -> int:
        others = pool.taken - own
        growth = max(0, others - self._others.get(pool.where, others))
        self._others[pool.where] = others
        return pool.limit - pool.taken - pool.margin - _LOOKAHEAD * growth

    def _pools(self) -> Iterator[_Pool]:
        path = self._root / "proc/meminfo"
        memory = proc_fields(path)
        total = memory["MemTotal"]
        yield _Pool(path, total, total - memory["MemAvailable"], total // _MACHINE_SHARE)
        for group in self._groups:
            numbers = (number_in(group.path / name) for name in group.limit_files)
            limit = min((number for number in numbers if number is not None), default=None)
            used = number_in(group.path / group.usage_file)
            if limit is not None and used is not None:
                margin = min(_GROUP_MARGIN, limit // _GROUP_SHARE)
                yield _Pool(group.path, limit, used - _easily_freed(group), margin)


def _easily_freed(group: GroupFolder) -> int:
    """Bytes of page cache of a group and its children that nobody would miss.

    Not what is mapped and in use (code: without it everybody crawls), nor what must be written
    first.
    """
    stat = words_in(group.path / "memory.stat")
    total = "total_" if "total_active_file" in stat else ""  # v1: with those of its children

    def field(*names: str) -> int:
        return sum(int(stat.get(name, ["0"])[0]) for name in names)

    inactive = field(f"{total}inactive_file")
    mapped = field(f"{total}mapped_file", "file_mapped")
    unwritten = field(f"{total}dirty", f"{total}writeback", "file_dirty", "file_writeback")
    unmapped = field(f"{total}active_file") + inactive - mapped
    return max(0, max(inactive, unmapped) - unwritten)
