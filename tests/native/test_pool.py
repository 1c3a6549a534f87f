"""Threads that the system does not give."""

from __future__ import annotations

import subprocess
import sys

MANY = """
import resource
from flashmoe import _native
limit = 3 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    _native.Pool(1024)
except RuntimeError as error:
    print("refused:", error)
print(_native.Pool(2) is not None)
"""


def test_a_pool_without_its_threads_is_an_error_and_not_the_end() -> None:
    """In a process of its own: room for stacks of 8 MiB each runs out before 1024 of them."""
    result = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "refused: Resource temporarily unavailable\nTrue\n"
