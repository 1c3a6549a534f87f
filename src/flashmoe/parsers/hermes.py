"""Hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as Qwen3 writes calls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flashmoe.parsers.json_text import dumped, parsed
from flashmoe.parsers.machine import JsonCallMachine, Markers
from flashmoe.parsers.plain import THINK

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKERS = (*THINK, OPEN, CLOSE)
# Up to the arguments, in the order that templates ask for. Another order is read at the end.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{', re.DOTALL
)


class HermesParser(JsonCallMachine):
    """A call streams once its name is known and its arguments begin."""

    def __init__(self, markers: Markers, opens_reasoning: bool) -> None:
        self._raw = ""
        super().__init__(markers, opens_reasoning, THINK, OPEN)

    def call(self) -> None:
        """After the opening tag."""
        self._raw = ""
        self.go(self._head, CLOSE)

    def end(self) -> None:
        """A reply may end without the closing tag."""
        if self.state == self._head:
            self._whole("")
        elif self.state == self._tail:
            self._tail(CLOSE)
        super().end()

    def _head(self, atom: str) -> None:
        if atom == CLOSE:
            self._whole(CLOSE)
            return
        self._raw += atom
        found = _HEAD.fullmatch(self._raw) if atom == "{" else None
        name = _name(found[1]) if found else None
        if name is not None:
            self._raw = ""
            self.arguments(self.start_call(name), self._tail, CLOSE)
            self.state("{")

    def _tail(self, atom: str) -> None:
        if atom != CLOSE:
            self._raw += atom
        elif self._raw.strip() in ("}", ""):
            self.text()
        else:
            self.spill(self._raw)

    def _whole(self, close: str) -> None:
        call = _call(self._raw)
        if call is None:
            self.spill(OPEN + self._raw + close)
        else:
            self.whole_call(*call)
            self.text()


def _name(text: str) -> str | None:
    try:
        return str(parsed(text))
    except ValueError:
        return None


def _call(text: str) -> tuple[str, str] | None:
    """(name, arguments) of a whole call, whatever the order of its keys."""
    try:
        call = parsed(text)
        arguments = _arguments(call) if isinstance(call, dict) else None
    except ValueError:
        return None
    if arguments is None or not isinstance(call.get("name"), str):
        return None
    return call["name"], dumped(arguments)


def _arguments(call: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given = call.get("arguments", call.get("parameters", {}))
    given = parsed(given) if isinstance(given, str) else given
    return given if isinstance(given, dict) else None
