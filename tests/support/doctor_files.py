"""What /proc and /sys say on a machine that is not this one."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: {free} kB\nSwapFree: {swap} kB\n"


def write_machine(
    root: Path, *, free: int = 9_000_000, swap: int = 0, huge: str = "always [madvise] never"
) -> Path:
    """Files below `root`; free and swap in kB."""
    files = {
        "proc/meminfo": _MEMINFO.format(free=free, swap=swap),
        "proc/self/status": "VmRSS: 1000 kB\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "",
        "proc/cpuinfo": "model name : Test CPU\n",
        "sys/kernel/mm/transparent_hugepage/enabled": huge,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
