"""The command itself: piped, and on a terminal."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flashmoe.chat.commands import HELP
from flashmoe.chat.screen import Screen
from flashmoe.chat.view import Figures, footer
from flashmoe.parsers.base import Content, Reasoning

COMMAND = [sys.executable, "-c", "from flashmoe.cli import main; main()", "chat"]
FIGURES = Figures(8, 3.5, 0.75, 1.2e9, 8_000_000_000, 40, 30, 1.5)


class Terminal:
    """The command on a pty."""

    def __init__(self, state: Path) -> None:
        self._fd, child = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(state), "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            COMMAND,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
        )
        os.close(child)
        self.text = ""

    def until(self, pattern: str, seconds: float = 60) -> str:
        """Reads until the pattern has come -> what came since the last call."""
        end, self.text = time.monotonic() + seconds, ""
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            if select.select([self._fd], [], [], 0.1)[0]:
                self.text += os.read(self._fd, 65536).decode(errors="replace")
        return self.text

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def test_two_turns_on_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until(r"\[\?2004h")  # bracketed paste: it reads keys
    terminal.type("What is the capital of Italy?\r")
    terminal.until("capital of Italy is Rome(.|\n)*reused 0 of(.|\n)*\\[\\?2004h")
    terminal.type("What is 3 plus\\\r 4?\r")
    terminal.until(r"reused [1-9][0-9]* of(.|\n)*\[\?2004h")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
    assert "+What is 3 plus\n+ 4?" in (tmp_path / "flashmoe" / "chat-history").read_text()


def test_pipes_get_answers_only() -> None:
    result = subprocess.run(
        COMMAND,
        input="What is the capital of Italy?\nWhat is 3 \\\nplus 4?\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0
    assert result.stdout.startswith("The capital of Italy is Rome.\n")
    assert result.stderr.count("reused") == 2
    assert "\x1b" not in result.stdout + result.stderr


def test_an_error_in_a_pipe_ends_with_its_code() -> None:
    result = subprocess.run(COMMAND, input="/bogus\n", capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "unknown command" in result.stderr


def test_the_footer_is_as_wide_as_the_terminal() -> None:
    assert footer(FIGURES, 200).endswith("first after 1.5 s")
    for width in range(1, 120):
        assert len(footer(FIGURES, width)) <= width
    assert footer(FIGURES, 30) == "3.5 tok/s | hit 75%"


@pytest.mark.parametrize("width", [40, 80])
def test_an_answer_longer_than_the_screen_is_shown_once(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=15, legacy_windows=False)
    screen = Screen(console, lambda question, text: None)
    screen.add([Reasoning("I think.\nMore.")], FIGURES)
    for number in range(60):
        screen.add([Content(f"Paragraph *{number}* \x1b[2Jhere.\n\n")], FIGURES)
    screen.end_answer(FIGURES, "")
    assert "\x1b[2J" not in out.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert all(f"Paragraph {number} " in plain for number in range(60))


@pytest.mark.parametrize("width", [20, 40, 80])
def test_tables_and_results_keep_their_columns(width: int) -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=width), lambda question, text: None)
    screen.table(HELP)
    left = max(map(len, HELP)) + 2
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 40:
        assert all(line[:left].strip() in ("", *HELP) for line in lines)
    out.truncate(0)
    screen.called("bash", f"{'word ' * 20}\n\n{'x' * 90}")
    lines = out.getvalue().lstrip("\0").splitlines()
    assert all(line.startswith("│ ") and len(line) <= width for line in lines)
    assert "".join(line[2:] for line in lines).count("x") == 90


def test_nobody_to_ask_is_a_refusal() -> None:
    screen = Screen(Console(file=io.StringIO()), lambda question, text: None)
    assert screen.allow("bash", "rm x") == ("no", "rm x")


def test_an_edited_command_is_run() -> None:
    typed = iter(["bogus", "e", "ls"])
    screen = Screen(Console(file=io.StringIO()), lambda question, text: next(typed))
    assert screen.allow("bash", "rm x") == ("yes", "ls")
