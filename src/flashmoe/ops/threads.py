"""How many threads the kernels get when nobody says."""

from __future__ import annotations

import os
from pathlib import Path


def default_threads() -> int:
    """The physical cores that this process may use: two hyper-threads share one set of units."""
    return max(1, len({_core_of(cpu) for cpu in os.sched_getaffinity(0)}))


def _core_of(cpu: int) -> str:
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return siblings.read_text().strip() if siblings.exists() else str(cpu)
