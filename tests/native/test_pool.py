"""Threads that the system does not give."""

from __future__ import annotations

import subprocess
import sys

MANY = """
import resource
from flashmoe import _native
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    _native.Pool(1024)
except RuntimeError as error:
    print("refused:", error)
print(_native.Pool(2) is not None)
"""


def test_a_pool_without_its_threads_is_an_error_and_not_the_end() -> None:
    """In a process of its own: half a GiB has no room for 1024 stacks of 2 MiB or more."""
    result = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "refused: Resource temporarily unavailable\nTrue\n"
