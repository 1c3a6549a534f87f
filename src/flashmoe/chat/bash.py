"""The bash tool: a command of the model in a shell of the user."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from flashmoe.chat.tools import MAX_OUTPUT, Tool
from flashmoe.errors import ToolError

TIME_LIMIT = 120.0
# Longer output is not even read: the middle of it would be cut anyway.
_READ = 4 * MAX_OUTPUT


def bash_tool(seconds: float = TIME_LIMIT) -> Tool:
    """The tool `bash`. seconds: after which a command is killed, with all that it started."""
    return Tool(
        name="bash",
        description="Run a command in bash and get its output and exit code.",
        parameters={
            "type": "object",
            "properties": {"command": {"type": "string", "description": "The command."}},
            "required": ["command"],
            "additionalProperties": False,
        },
        run=lambda arguments: run_command(arguments, seconds),
        subject="command",
    )


def run_command(arguments: Mapping[str, Any], seconds: float) -> str:
    """Run arguments["command"] -> output (both streams, its middle cut) and exit code.

    Its stdin is empty. Raises ToolError when there is no command or no bash.
    """
    command = arguments.get("command")
    if not isinstance(command, str) or not command.strip() or "\0" in command:
        raise ToolError("a command is a non-empty text", where="bash", got=repr(command))
    # A file and not a pipe: what the command leaves in the background must not hold us up.
    with tempfile.TemporaryFile() as output:
        ending = _run(command, output, seconds)
        text = _text(output)
    return f"{text}\n{ending}" if text else ending


def _run(command: str, output: IO[bytes], seconds: float) -> str:
    """How the command ended."""
    try:
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"bash cannot be started ({error})", where="bash") from error
    try:
        return f"[exit code {process.wait(seconds)}]"
    except subprocess.TimeoutExpired:
        return f"[killed after {seconds:g} s]"
    except KeyboardInterrupt:
        return "[killed by the user]"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _text(output: IO[bytes]) -> str:
    """The output, or its beginning and end."""
    size = output.seek(0, os.SEEK_END)
    output.seek(0)
    if size <= _READ:
        return output.read().decode("utf-8", "replace").rstrip("\n")
    head = output.read(_READ // 2)
    output.seek(size - _READ // 2)
    left_out = size - len(head) - _READ // 2
    middle = f"\n[... {left_out} bytes left out ...]\n".encode()
    return (head + middle + output.read()).decode("utf-8", "replace").rstrip("\n")
