"""How many threads the kernels get when nobody says, and what is said where they cannot be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashmoe.errors import UsageError


def default_threads() -> int:
    """The physical cores that this process may use: two hyper-threads share one set of units."""
    return max(1, len({_core_of(cpu) for cpu in os.sched_getaffinity(0)}))


def _core_of(cpu: int) -> str:
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return siblings.read_text().strip() if siblings.exists() else str(cpu)


@contextmanager
def thread_errors(option: str, threads: int) -> Iterator[None]:
    """Turns the system's refusal of a thread in the block into a UsageError.

    option: what chose the number of threads.
    """
    try:
        yield
    except RuntimeError as error:  # std::system_error of a native object's threads
        raise UsageError(
            f"the system does not give these threads: {error}",
            where=option,
            got=threads,
            hint="Ask for fewer, or raise the limit (ulimit -u, pids.max of the cgroup)",
        ) from error
