"""Following JSON text a character at a time, without reading it."""

from __future__ import annotations

import json
from typing import Any


class JsonObject:
    """Tells when an object that began with its "{" is over, by brackets and strings alone."""

    def __init__(self) -> None:
        self._depth = 0
        self._escaped = False
        self.in_string = False

    def push(self, atom: str) -> bool:
        """Takes the next character (a marker inside a string); True when it was the last."""
        if self.in_string:
            for char in atom:
                self._string(char)
            return False
        return self._outside(atom)

    def _outside(self, char: str) -> bool:
        if char == '"':
            self.in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        return self._depth == 0

    def _string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self.in_string = False


def parsed(text: str) -> Any:
    """The value of JSON text; ValueError where it is none (too deep a nesting included)."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def dumped(value: Any) -> str:
    """A value as JSON text, letters as they are."""
    return json.dumps(value, ensure_ascii=False)


def inner(text: str) -> str:
    """`text` as it stands inside a JSON string."""
    return dumped(text)[1:-1]
