"""Facts about the machine that a figure belongs to. What the system does not tell is None."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from flashmoe import _native
from flashmoe.experts.memory import read_system_memory


def machine_facts(data: Path | None = None, root: Path = Path("/")) -> dict[str, Any]:
    """Processor, memory, kernel, and the disk that `data` lies on.

    root: where /proc and /sys begin (for tests).
    """
    return {
        "cpu": _cpu_model(root / "proc/cpuinfo"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": read_system_memory(root).physical,
        "kernel": platform.release(),
        "isa": _native.isa(),
        "disk": None if data is None else _disk(data, root),
    }


def cgroup_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest memory cgroup leaves this process; None: no limit."""
    limit = read_system_memory(root).cgroup
    return None if limit is None else limit.nbytes


def _cpu_model(cpuinfo: Path) -> str | None:
    # x86 says "model name"; ARM often says nothing.
    for line in _lines(cpuinfo):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or None


def _disk(data: Path, root: Path) -> dict[str, Any]:
    """Name and model of the block device, and the file system on it."""
    device = data.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    block = (root / "sys/dev/block" / number).resolve()
    # A partition has no model of its own: its disk is the folder above.
    models = [_lines(folder / "device/model") for folder in (block, block.parent)]
    model = next((lines[0].strip() for lines in models if lines), None)
    return {
        "device": block.name if block.exists() else None,
        "model": model,
        "file_system": _file_system(number, root / "proc/self/mountinfo"),
    }


def _file_system(number: str, mountinfo: Path) -> str | None:
    for line in _lines(mountinfo):
        left, _, right = line.partition(" - ")
        if left.split()[2] == number:
            return right.split()[0]
    return None


def _lines(path: Path) -> list[str]:
    """The lines of a file that not every system has."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
