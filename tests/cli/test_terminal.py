import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from io import StringIO
from typing import TextIO

import pytest

from flashmoe.cli.terminal import LiveText, StatusLine, shortened


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_status_line_is_silent_without_a_terminal() -> None:
    stream = StringIO()
    line = StatusLine(stream)
    line.show("working")
    line.clear()
    assert stream.getvalue() == ""


def test_status_line_replaces_and_clears_itself_once() -> None:
    stream = Terminal()
    line = StatusLine(stream)
    line.show("one")
    line.show("two")
    line.clear()
    line.clear()
    assert stream.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """The end of a pseudo-terminal that a person would see, and the one that is written to."""
    screen, device = pty.openpty()
    with open(device, "w", encoding="utf-8") as stream:
        yield screen, stream
    os.close(screen)


@pytest.mark.parametrize("columns", [40, 20])
def test_status_line_fits_the_terminal_as_it_is_now(
    terminal: tuple[int, TextIO], columns: int
) -> None:
    screen, stream = terminal
    line = StatusLine(stream)
    line.show("before it was resized")
    os.read(screen, 1024)
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    line.show("reading the prompt: 1024 of 3000 tokens, 95.1 tok/s, 21 s left")
    shown = os.read(screen, 1024).decode().removeprefix("\r\x1b[K")
    assert shown == "reading the prompt: 1024 of 3000 tokens,"[: columns - 2] + "…"


def test_a_text_is_cut_only_where_it_does_not_fit() -> None:
    assert shortened("twelve chars", 13) == "twelve chars"
    assert shortened("twelve chars", 12) == "twelve cha…"
    assert shortened("twelve chars", 0) == "twelve chars"
    assert len(shortened("twelve chars", 1)) == 1


def test_live_text_is_plain_in_a_pipe_and_safe_on_a_terminal() -> None:
    pipe, terminal = StringIO(), Terminal()
    for stream in (pipe, terminal):
        LiveText(stream).write("a\x1b[2J\tb\n\x9bc")
    assert pipe.getvalue() == "a\x1b[2J\tb\n\x9bc"
    assert terminal.getvalue() == "a[2J\tb\nc"


def test_a_line_is_ended_only_if_begun() -> None:
    for text, expected in [("", ""), ("a", "a\n"), ("a\n", "a\n")]:
        stream = StringIO()
        live = LiveText(stream)
        live.write(text)
        live.end_line()
        assert stream.getvalue() == expected
