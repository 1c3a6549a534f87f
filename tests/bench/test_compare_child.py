"""The protocol between the comparison and its engines, with engines that are small scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from flashmoe.bench.compare import peer
from flashmoe.bench.compare.child import Program
from flashmoe.bench.compare.surroundings import MemoryGroup
from flashmoe.errors import FlashMoeError, UsageError

_HEAD = f"""
import os, sys
sys.path.insert(0, {str(Path(peer.__file__).parent)!r})
from peer import serve, timed
"""
_ECHO = """
def echo(request, emit):
    emit("progress", "half way")
    print("a library that talks to standard output")
    return {"request": request}
sys.exit(serve({"echo": echo}))
"""


def program(tmp_path: Path, body: str) -> Program:
    script = tmp_path / "engine.py"
    script.write_text(_HEAD + body)
    return Program("fake", [sys.executable, str(script)])


def call(tmp_path: Path, body: str, group: MemoryGroup | None = None) -> Any:
    return program(tmp_path, body).call("echo", {"ids": [1, 2]}, lambda text: None, group)


def test_request_progress_result(tmp_path: Path) -> None:
    seen: list[str] = []
    result = program(tmp_path, _ECHO).call("echo", {"ids": [1, 2]}, seen.append)
    assert result == {"request": {"ids": [1, 2]}}
    assert seen == ["half way"]


def test_settings_of_the_environment_stay_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMOE_RAM", "1G")
    monkeypatch.setenv("FLASHMOE_ISA", "avx2")
    body = """
def echo(request, emit):
    return {name: value for name, value in os.environ.items() if name.startswith("FLASHMOE_")}
serve({"echo": echo})
"""
    assert call(tmp_path, body) == {"FLASHMOE_ISA": "avx2"}


def test_it_joins_the_group_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    group = MemoryGroup(tmp_path / "group", "memory.peak")
    body = """
def echo(request, emit):
    return {"id": os.getpid()}
serve({"echo": echo})
"""
    result = call(tmp_path, body, group)
    assert group.processes.read_text() == f"{result['id']}\n"


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    body = "def echo(request, emit):\n import no_such_package\nserve({'echo': echo})"
    with pytest.raises(UsageError, match=r"no_such_package.*flashmoe\[compare\]"):
        call(tmp_path, body)


def test_an_error_is_shown_with_its_traceback(tmp_path: Path) -> None:
    body = "def echo(request, emit):\n raise RuntimeError('no context')\nserve({'echo': echo})"
    with pytest.raises(FlashMoeError, match=r"(?s)RuntimeError: no context.*Traceback"):
        call(tmp_path, body)


@pytest.mark.parametrize("body", ["sys.exit(3)", "sys.stdin.readline(); sys.exit(3)"])
def test_an_engine_that_dies(tmp_path: Path, body: str) -> None:
    with pytest.raises(FlashMoeError, match="exit status 3"):
        call(tmp_path, body)


def test_an_engine_that_is_killed_under_a_limit(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    group = MemoryGroup(tmp_path / "group", "memory.peak")
    with pytest.raises(FlashMoeError, match="out of memory under this limit"):
        call(tmp_path, "os.kill(os.getpid(), 9)", group)


def test_an_interpreter_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        Program("fake", ["/no/such/python"]).call("run", {}, lambda text: None)


def test_an_interrupt_ends_the_engine(tmp_path: Path) -> None:
    body = """
import time
def echo(request, emit):
    emit("progress", str(os.getpid()))
    time.sleep(600)
serve({"echo": echo})
"""
    ids: list[int] = []

    def interrupt(text: str) -> None:
        ids.append(int(text))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program(tmp_path, body).call("echo", {}, interrupt)
    assert not Path(f"/proc/{ids[0]}").exists()


def test_timed_figures() -> None:
    figures = peer.timed(lambda: None, 7)
    assert figures["tokens"] == 7
    assert figures["seconds"] >= 0
    assert figures["cpu_seconds"] >= 0
    assert figures["disk_bytes"] >= 0
    assert peer.peak_bytes() > 0
