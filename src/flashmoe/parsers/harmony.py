"""gpt-oss: messages in channels. analysis is reasoning, a message to functions.f is a call."""

from __future__ import annotations

import re

from flashmoe.parsers.base import CallArguments, CallEnd, CallStart, Content, Reasoning
from flashmoe.parsers.machine import Machine, Markers

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, CALL = "<|constrain|>", "<|call|>"
ENDS = ("<|end|>", "<|return|>", CALL)
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
_RECIPIENT = re.compile(r"\bto=functions\.([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>(\w+)")


def recipient(header: str) -> str | None:
    """The function that a message with this header calls."""
    found = _RECIPIENT.search(header)
    return found[1] if found else None


class HarmonyParser(Machine):
    """A reply goes on after <|start|>assistant: it begins in a header."""

    def __init__(self, markers: Markers) -> None:
        self._calls = 0
        self._raw = ""
        self._kind: type[Reasoning] | type[Content] = Content
        super().__init__(markers, self._header, MARKERS)

    def end(self) -> None:
        """A reply that breaks off: a call is over, a header that led to no message is content."""
        if self.state == self._arguments:
            self.emit(CallEnd(self._calls - 1))
        elif self.state == self._header and not _empty(self._raw):
            self.emit(Content(self._raw))

    def _header(self, atom: str) -> None:
        if atom == MESSAGE:
            self._begin(self._raw)
        elif atom in ENDS:
            self._next("" if _empty(self._raw) else self._raw)
        else:
            self._raw += atom

    def _begin(self, header: str) -> None:
        name, channel = recipient(header), _CHANNEL.search(header)
        if name is not None:
            self.emit(CallStart(self._calls, name))
            self._calls += 1
            self.go(self._arguments, START, CHANNEL, *ENDS)
            return
        self._kind = Reasoning if channel and channel[1] == "analysis" else Content
        self.go(self._body, START, CHANNEL, *ENDS)

    def _body(self, atom: str) -> None:
        if atom in ENDS:
            self._next("")
        elif atom in (START, CHANNEL):
            self._next("")
            self.state(atom)
        else:
            self.emit(self._kind(atom))

    def _arguments(self, atom: str) -> None:
        if atom in ENDS or atom in (START, CHANNEL):
            self.emit(CallEnd(self._calls - 1))
            self._next("")
            if atom not in ENDS:
                self.state(atom)
        else:
            self.emit(CallArguments(self._calls - 1, atom))

    def _next(self, lost: str) -> None:
        if lost:
            self.emit(Content(lost))
        self._raw = ""
        self.go(self._header, *MARKERS)


def _empty(header: str) -> bool:
    """Whether a header says nothing but who speaks."""
    return header.replace(START, "").strip() in ("", "assistant")
