"""What a chat shows, and the plain way of showing it: answers to stdout, all else to stderr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from flashmoe.chat.tools import Answer
from flashmoe.parsers.base import Content, ReplyEvent
from flashmoe.text.printable import printable


@dataclass(frozen=True)
class Figures:
    """An answer in numbers, so far.

    reused: tokens of the prompt that were not read again. tokens_per_second: of decode steps.
    disk: bytes per second from the disk, memory: resident bytes at their peak.
    """

    tokens: int
    tokens_per_second: float
    hit_rate: float
    disk: float
    memory: int
    prompt_tokens: int
    reused: int
    first_token_seconds: float


class View(Protocol):
    """Where a chat is shown."""

    def reading(self, done: int, total: int) -> None:
        """So many tokens of the prompt are run."""

    def add(self, events: list[ReplyEvent], figures: Figures) -> None:
        """The answer goes on."""

    def end_answer(self, figures: Figures, remark: str) -> None:
        """The answer is over; remark: why, if not by itself."""

    def called(self, name: str, text: str) -> None:
        """What a tool gave back."""

    def note(self, text: str) -> None:
        """Something about the chat."""

    def table(self, rows: Mapping[str, str]) -> None:
        """Names, and what is to be said of each."""

    def error(self, text: str) -> None:
        """Something that went wrong."""

    def allow(self, name: str, text: str) -> tuple[Answer, str]:
        """Ask whether a tool may run; see tools.Asks."""


class PlainView:
    """No colours, nothing that moves: for pipes and files. Calls are refused: whom to ask?"""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._last = "\n"

    def reading(self, done: int, total: int) -> None:
        """Not shown."""

    def add(self, events: list[ReplyEvent], figures: Figures) -> None:
        """Content only; reasoning is left out."""
        for event in events:
            if isinstance(event, Content) and event.text:
                self._out.write(event.text)
                self._last = event.text[-1]
        self._out.flush()

    def end_answer(self, figures: Figures, remark: str) -> None:
        """Ends the line; figures go to stderr."""
        if self._last != "\n":
            self._out.write("\n")
            self._last = "\n"
        self._out.flush()
        self.note(footer(figures, 200) + (f" | {remark}" if remark else ""))

    def called(self, name: str, text: str) -> None:
        """See View."""
        self.note(f"{name}: {text}")

    def note(self, text: str) -> None:
        """See View."""
        print(printable(text), file=self._err, flush=True)

    def table(self, rows: Mapping[str, str]) -> None:
        """See View."""
        width = max(map(len, rows))
        self.note("\n".join(f"{name:{width}}  {text}" for name, text in rows.items()))

    def error(self, text: str) -> None:
        """See View."""
        self.note(f"error: {text}")

    def allow(self, name: str, text: str) -> tuple[Answer, str]:
        """See View."""
        self.note(f"{name} was not run: stdin is no terminal, and there is no --yes")
        return "no", text


def footer(figures: Figures, width: int) -> str:
    """The figures in one line of at most `width` columns, the less telling ones left out."""
    parts = [
        f"{figures.tokens_per_second:.1f} tok/s",
        f"hit {figures.hit_rate:.0%}",
        f"{figures.disk / 1e9:.2f} GB/s",
        f"RAM {figures.memory / 1e9:.2f} GB",
        f"reused {figures.reused} of {figures.prompt_tokens} tokens",
        f"{figures.tokens} tokens",
        f"first after {figures.first_token_seconds:.1f} s",
    ]
    while len(parts) > 1 and len(" | ".join(parts)) > width:
        parts.pop()
    return " | ".join(parts)[:width]
