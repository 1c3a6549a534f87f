"""`flashmoe serve` as a process of its own, on the demo model."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

START_SECONDS = 30


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The URL of a server with these arguments; it must end without a traceback."""
    run = ["-c", "from flashmoe.cli import main; main()", "serve", *arguments, "--port"]
    with server_process(*run) as (url, process):
        yield url
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert "Traceback" not in told, told


@contextmanager
def server_process(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`python ARGUMENTS PORT` with a free port: its URL and the process. It is killed at last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *arguments, str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield _when_ready(f"http://127.0.0.1:{port}", process), process
        finally:
            process.kill()


def _when_ready(url: str, process: subprocess.Popen[str]) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        try:
            if httpx.get(url + "/health").status_code == 200:
                return url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} was not ready after {START_SECONDS} s")
