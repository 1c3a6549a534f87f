"""Writing to a terminal, or to whatever stands in for one."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TextIO

from flashmoe.text.printable import printable

_CLEAR_LINE = "\r\x1b[K"


class StatusLine:
    """One line that is overwritten in place; silent when the stream is no terminal.

    A text that is too long is cut: what the terminal wraps could not be overwritten.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._enabled = stream.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Replaces the line by `text`."""
        if self._enabled:
            self._stream.write(_CLEAR_LINE + shortened(text, _columns(self._stream)))
            self._stream.flush()
            self._shown = True

    def clear(self) -> None:
        """Removes the line."""
        if self._shown:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
            self._shown = False


def shortened(text: str, columns: int) -> str:
    """`text`, or as much of it as leaves the last column free, with an ellipsis at its end.

    columns: 0 if the width is not known; then nothing is cut.
    """
    if not columns or len(text) < columns:
        return text
    return text[: max(0, columns - 2)] + "…"


def _columns(stream: TextIO) -> int:
    """The terminal's width now (it may be resized), 0 if it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:  # no terminal has this stream
        return 0


def printed_columns() -> int:
    """The width of the terminal that stdout is, 0 if it is none."""
    return _columns(sys.stdout) if sys.stdout.isatty() else 0


def wrapped(text: str, columns: int, indent: int = 0) -> str:
    """`text` in lines of at most `columns`, those after the first indented; words stay whole.

    columns: 0 for one long line.
    """
    if not columns:
        return text
    return textwrap.fill(
        text,
        max(columns - 1, indent + 10),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class LiveText:
    """Text that appears as it comes. Control characters are left out on a terminal only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._safe = stream.isatty()
        self._last = ""

    def write(self, text: str) -> None:
        """Shows `text` at once."""
        if self._safe:
            text = printable(text)
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._last = text[-1]

    def end_line(self) -> None:
        """Ends a line that was begun."""
        if self._last not in ("", "\n"):
            self.write("\n")
