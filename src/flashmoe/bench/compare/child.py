"""Runs an engine as a process of its own: request in, JSON lines out, joined to a cgroup."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from flashmoe.bench.compare.surroundings import MemoryGroup
from flashmoe.errors import FlashMoeError, UsageError
from flashmoe.settings import plain_environment

Progress = Callable[[str], None]

EXTRA: Final = 'pip install "flashmoe[compare]"'
_ERROR_LINES: Final = 12
# Joins the group, then becomes the engine: everything that it allocates counts.
_JOIN: Final = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True)
class Program:
    """A command that serves requests as flashmoe.bench.compare.peer.serve does."""

    name: str
    command: Sequence[str]

    def call(
        self,
        verb: str,
        request: dict[str, Any],
        progress: Progress,
        group: MemoryGroup | None = None,
    ) -> dict[str, Any]:
        """Run a verb to its end -> what it found out.

        Raises UsageError if a package is missing, FlashMoeError if the process failed.
        """
        command = [*self.command, verb]
        if group is not None:
            command = ["/bin/sh", "-c", _JOIN, str(group.processes), *command]
        with tempfile.TemporaryFile("w+") as errors:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=plain_environment(),
                )
            except OSError as error:
                raise UsageError(
                    f"cannot be started: {error.strerror}", where=command[0]
                ) from error
            last = _converse(process, request, progress)
            return self._result(last, process.returncode, errors, group)

    def _result(
        self, last: dict[str, Any], status: int, errors: IO[str], group: MemoryGroup | None
    ) -> dict[str, Any]:
        """The value of the last event, if that is a result."""
        event, value = last.get("event"), last.get("value")
        if event == "missing":
            hint = f"{EXTRA} installs it; or name another Python with --peer-python."
            raise UsageError("package not found", where=self.name, got=value, hint=hint)
        if isinstance(value, dict) and event == "result" and status == 0:
            return value
        hint = _last_lines(errors)
        if status == -signal.SIGKILL and group is not None:
            hint = "It was killed: out of memory under this limit?"
        got = value if event == "error" else f"exit status {status}"
        raise FlashMoeError("the engine failed", where=self.name, got=got, hint=hint)


def _converse(
    process: subprocess.Popen[str], request: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Send the request, show progress -> the last event, {} if there was none."""
    last: dict[str, Any] = {}
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as stream:
            stream.write(json.dumps(request) + "\n")
        for line in process.stdout:
            last = json.loads(line)
            if last["event"] == "progress":
                progress(last["value"])
    except BrokenPipeError:
        pass  # it ended before it read the request: its exit status tells
    finally:
        # Reached early on an interrupt: nothing may go on running.
        if not last or last["event"] == "progress":
            process.kill()
        process.stdout.close()
        process.wait()
    return last


def _last_lines(errors: IO[str]) -> str:
    errors.seek(0)
    lines = errors.read().splitlines()[-_ERROR_LINES:]
    return "Its last words:\n" + "\n".join(lines) if lines else ""


def peer_program(python: str) -> Program:
    """llama.cpp through the packages of a Python interpreter."""
    script = Path(__file__).with_name("peer.py")
    # -I: neither our modules nor those beside the script are importable there.
    return Program(f"llama.cpp in {python}", [python, "-I", str(script)])
