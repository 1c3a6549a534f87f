"""Writing to a terminal, or to whatever stands in for one."""

from __future__ import annotations

from typing import TextIO

from flashmoe.text.printable import printable

_CLEAR_LINE = "\r\x1b[K"


class StatusLine:
    """One line that is overwritten in place; silent when the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._enabled = stream.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Replaces the line by `text`."""
        if self._enabled:
            self._stream.write(_CLEAR_LINE + text)
            self._stream.flush()
            self._shown = True

    def clear(self) -> None:
        """Removes the line."""
        if self._shown:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
            self._shown = False


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
