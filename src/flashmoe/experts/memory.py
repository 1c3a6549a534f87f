"""How much memory the system lets this process have: /proc and cgroups v1 and v2."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from flashmoe.errors import StorageError

_NO_LIMIT: Final = 2**60  # cgroup v1 writes "none" as a number near 2**63

# memory.high does not kill, but slows down whoever is above it to a crawl.
_V2_FILES: Final = ("memory.max", "memory.high")
_V1_FILES: Final = ("memory.limit_in_bytes",)
_PEAK_FILES: Final = {_V2_FILES: "memory.peak", _V1_FILES: "memory.max_usage_in_bytes"}
_USAGE_FILES: Final = {_V2_FILES: "memory.current", _V1_FILES: "memory.usage_in_bytes"}


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper bound in bytes. origin: who sets it, as shown to the user."""

    nbytes: int
    origin: str


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """What the system said, in bytes.

    available: could be had now without swapping. process: resident already. cgroup: the tightest
    limit on the way up the hierarchy, None if there is none. swap: free space to swap to.
    """

    physical: int
    available: int
    process: int
    cgroup: Limit | None
    swap: int = 0


def read_system_memory(root: Path = Path("/")) -> SystemMemory:
    """Read the files of the kernel. root: where /proc and the cgroup mounts begin (for tests).

    Raises StorageError if /proc cannot be read; cgroup files that are not there are no limits.
    """
    meminfo = proc_fields(root / "proc/meminfo")
    status = proc_fields(root / "proc/self/status")
    limits = list(_cgroup_limits(root))
    return SystemMemory(
        physical=meminfo["MemTotal"],
        available=meminfo["MemAvailable"],
        process=status["VmRSS"],
        cgroup=min(limits, key=lambda limit: limit.nbytes, default=None),
        swap=meminfo.get("SwapFree", 0),
    )


def peak_resident(root: Path = Path("/")) -> int:
    """The most bytes that this process ever had resident.

    Not ru_maxrss: that begins with what the parent had when it started us.
    """
    return proc_fields(root / "proc/self/status")["VmHWM"]


def locked_limit() -> int | None:
    """Bytes that this process may lock (RLIMIT_MEMLOCK), None: no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def proc_fields(path: Path) -> dict[str, int]:
    """{name: bytes} of the lines "Name:  123 kB". Raises StorageError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=path) from error
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0]) * 1024
    return fields


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """A mounted cgroup tree: the mount shows what lies under `top` at `mount`."""

    top: PurePosixPath
    mount: PurePosixPath
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupFolder:
    """A memory cgroup, and the names of its files for limits (the hard one first), use and highest
    use."""

    path: Path
    limit_files: tuple[str, ...]
    usage_file: str
    peak_file: str


def group_folders(root: Path = Path("/")) -> Iterator[GroupFolder]:
    """The process's memory cgroups and their parents, innermost first."""
    for hierarchy, folder in _own_folders(root):
        path = root / folder.relative_to("/")
        files = hierarchy.files
        yield GroupFolder(path, files, _USAGE_FILES[files], _PEAK_FILES[files])


def _cgroup_limits(root: Path) -> Iterator[Limit]:
    for hierarchy, folder in _own_folders(root):
        for name in hierarchy.files:
            nbytes = number_in(root / folder.relative_to("/") / name)
            if nbytes is not None:
                yield Limit(nbytes, f"cgroup limit {folder / name}")


def _own_folders(root: Path) -> Iterator[tuple[_Hierarchy, PurePosixPath]]:
    own = _own_groups(root)
    for hierarchy in _hierarchies(root):
        group = own.get(hierarchy.files)
        if group is not None:
            for folder in _folders(hierarchy, group):
                yield hierarchy, folder


def _own_groups(root: Path) -> dict[tuple[str, ...], PurePosixPath]:
    """The process's group in the v2 tree and in the v1 memory tree."""
    groups: dict[tuple[str, ...], PurePosixPath] = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and controllers == "":
            groups[_V2_FILES] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            groups[_V1_FILES] = PurePosixPath(path)
    return groups


def _hierarchies(root: Path) -> Iterator[_Hierarchy]:
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        top, mount = PurePosixPath(_unescape(fields[3])), PurePosixPath(_unescape(fields[4]))
        if kind[0] == "cgroup2":
            yield _Hierarchy(top, mount, _V2_FILES)
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield _Hierarchy(top, mount, _V1_FILES)


def _folders(hierarchy: _Hierarchy, group: PurePosixPath) -> Iterator[PurePosixPath]:
    """The folders of the group and of all its parents that can be seen."""
    folder = hierarchy.mount
    # In a container the group may be named from outside the mount: then the mount is all we see.
    if group.is_relative_to(hierarchy.top) and ".." not in group.parts:
        folder = hierarchy.mount / group.relative_to(hierarchy.top)
    while folder != hierarchy.mount:
        yield folder
        folder = folder.parent
    yield folder


def words_in(path: Path) -> dict[str, list[str]]:
    """{first word: other words} of each line of a file of a cgroup; empty if it is not there."""
    rows = (line.split() for line in _lines(path))
    return {row[0]: row[1:] for row in rows if row}


def number_in(path: Path) -> int | None:
    """The number in a file of a cgroup; None if it is not there or says that there is no limit."""
    text = "".join(_lines(path)).strip()
    if not text.isdecimal() or int(text) >= _NO_LIMIT:
        return None  # absent, or "max"
    return int(text)


def _lines(path: Path) -> list[str]:
    """The lines of a file that may be absent or closed to us: not every group shows its limits."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _unescape(path: str) -> str:
    """Undo the octal escapes of mountinfo."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path
