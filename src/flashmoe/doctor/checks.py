"""The checks of `flashmoe doctor`, one line each. What a system does not tell is said so."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flashmoe import __version__
from flashmoe.bench.machine import machine_facts
from flashmoe.bench.probe import probe_disk
from flashmoe.doctor.findings import Finding
from flashmoe.doctor.gpu import check_gpus
from flashmoe.errors import FlashMoeError
from flashmoe.experts.memory import locked_limit, read_system_memory
from flashmoe.sizes import format_size

# An expert of Qwen3-30B-A3B at 4.5 bits per weight.
EXPERT_BYTES = 2_654_208
_SLOW_DISK = 0.5e9
_FEW_FILES = 1024
_SMALL_MEMORY = 4 << 30


def examine(models: Path, root: Path = Path("/"), probe: bool = True) -> Iterator[Finding]:
    """All findings in order.

    models: the directory whose disk is looked at; its nearest parent that exists is taken. root:
    where /proc and /sys begin (for tests). probe: write and read a file of 128 MiB there.
    """
    place = next(path for path in (models, *models.parents) if path.is_dir())
    checks: list[Callable[[], Finding]] = [
        lambda: _kernels(root),
        lambda: _memory(root),
        lambda: _cgroup(root),
        lambda: _swap(root),
        lambda: _huge_pages(root),
        lambda: _disk(place, root),
        lambda: _read_ahead(place, root),
        _open_files,
        _locked_memory,
    ]
    for check in checks:
        yield check()
    yield from check_gpus(root)
    yield _versions()
    if probe:
        yield from _rate(place)


def _kernels(root: Path) -> Finding:
    facts = machine_facts(root=root)
    isa = str(facts["isa"])
    text = f"{facts['cpu'] or platform.machine()}, {facts['cores']} cores, kernels: {isa}"
    if isa == "scalar":
        return Finding("cpu", "warn", text, "No vector kernels for this CPU: expect slow runs", isa)
    return Finding("cpu", "ok", text, value=isa)


def _memory(root: Path) -> Finding:
    memory = read_system_memory(root)
    text = f"{format_size(memory.available)} free of {format_size(memory.physical)}"
    low = memory.available < _SMALL_MEMORY
    advice = "Close other programs: what is free holds experts" if low else ""
    return Finding("memory", "warn" if low else "ok", text, advice, memory.available)


def _cgroup(root: Path) -> Finding:
    limit = read_system_memory(root).cgroup
    if limit is None:
        return Finding("cgroup", "ok", "no memory limit")
    return Finding(
        "cgroup", "ok", f"{format_size(limit.nbytes)} ({limit.origin})", "", limit.nbytes
    )


def _swap(root: Path) -> Finding:
    free = read_system_memory(root).swap
    if free == 0:
        return Finding("swap", "ok", "off", value=0)
    advice = "Swapped experts are slower than experts read anew: keep --ram below what is free"
    return Finding("swap", "warn", f"{format_size(free)} free", advice, free)


def _huge_pages(root: Path) -> Finding:
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    text = path.read_text() if path.exists() else ""
    mode = text.partition("[")[2].partition("]")[0] or "unknown"
    if mode in ("always", "madvise"):
        return Finding("huge pages", "ok", mode, value=mode)
    advice = f"Reads into 4 KiB pages cost up to half the speed: echo madvise > {path}"
    return Finding("huge pages", "warn", mode, advice, mode)


def _disk(place: Path, root: Path) -> Finding:
    disk = machine_facts(place, root)["disk"]
    block = _block(place, root)
    spins = (block / "queue/rotational").exists() and _number(block / "queue/rotational") == 1
    kind = "hard disk" if spins else "SSD or virtual"
    text = (
        f"{disk['model'] or disk['device'] or 'unknown'} ({kind}), {disk['file_system']}, {place}"
    )
    advice = "Keep models on an SSD: FLASHMOE_HOME names their directory" if spins else ""
    return Finding("disk", "warn" if spins else "ok", text, advice, disk["file_system"])


def _read_ahead(place: Path, root: Path) -> Finding:
    kib = _number(_block(place, root) / "queue/read_ahead_kb")
    if kib is None:
        return Finding("read-ahead", "ok", "not told by this file system")
    # Experts are read past the page cache: it matters only where O_DIRECT is refused.
    return Finding("read-ahead", "ok", f"{kib} KiB", value=kib)


def _block(place: Path, root: Path) -> Path:
    """The folder in /sys of the disk that a path lies on; a partition's disk is its parent."""
    device = place.stat().st_dev
    block = (root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return block if (block / "queue").is_dir() else block.parent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not every device tells
        return None


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 0 <= soft < _FEW_FILES
    advice = "Raise it: ulimit -n 4096" if low else ""
    return Finding("open files", "warn" if low else "ok", f"at most {soft}", advice, soft)


def _locked_memory() -> Finding:
    limit = locked_limit()
    text = "no limit" if limit is None else f"at most {format_size(limit)}"
    note = "" if limit is None else "Only --lock needs more: ulimit -l unlimited"
    return Finding("locked memory", "ok", text, note, limit)


def _versions() -> Finding:
    names = ("numpy", "tokenizers", "huggingface_hub", "starlette")
    found = [f"{name} {_version(name)}" for name in names]
    python = f"Python {platform.python_version()}, Linux {platform.release()}"
    return Finding("versions", "ok", ", ".join([f"flashmoe {__version__}", python, *found]))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _rate(place: Path) -> Iterator[Finding]:
    """O_DIRECT, and the rate at an expert's size, on a file that is deleted again."""
    try:
        direct, rate = probe_disk(place, EXPERT_BYTES)
    except FlashMoeError as error:
        yield Finding("disk rate", "fail", str(error), "Choose another place: FLASHMOE_HOME")
        return
    advice = "" if direct else "Experts go through the page cache, beyond --ram: use ext4 or xfs"
    yield Finding("O_DIRECT", "ok" if direct else "warn", "works" if direct else "refused", advice)
    slow = rate < _SLOW_DISK
    text = f"{rate / 1e9:.2f} GB/s in reads of {EXPERT_BYTES / 1e6:.2f} MB, new file"
    advice = "Each token waits for this: move the models to a faster SSD" if slow else ""
    yield Finding("disk rate", "warn" if slow else "ok", text, advice, rate)
