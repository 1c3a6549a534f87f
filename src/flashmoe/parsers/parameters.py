"""Parameters written as tagged text, turned into the JSON object that clients expect."""

from __future__ import annotations

from collections.abc import Callable

from flashmoe.parsers.base import CallArguments, CallEnd, ReplyEvent
from flashmoe.parsers.json_text import dumped, inner
from flashmoe.parsers.schema import Schema, fits, kinds, properties

_TEXT = frozenset({"string"})


class Parameters:
    """The arguments of one call, as JSON pieces. Strings are passed on as they come.

    newlines: a value stands on lines of its own: one leading and one trailing newline are not part
    of it.
    """

    def __init__(
        self, emit: Callable[[ReplyEvent], None], index: int, schema: Schema, *, newlines: bool
    ) -> None:
        self._emit, self._index, self._newlines = emit, index, newlines
        self._properties = properties(schema)
        self._before = "{"
        self._kinds = _TEXT
        self._held = ""  # a newline that may be the last, or the whole of a value that is no text
        self._begun = False

    def begin(self, key: str, *, types: frozenset[str] | None = None) -> None:
        """A parameter begins; `types` where the reply itself says them."""
        known = kinds(self._properties.get(key, {}))
        self._kinds = known if types is None else types
        self._held, self._begun = "", False
        quote = '"' if self._kinds == _TEXT else ""
        self._write(f"{self._before}{dumped(key)}: {quote}")
        self._before = ", "

    def push(self, text: str) -> None:
        """More of the value."""
        for char in text:
            first, self._begun = not self._begun, True
            if self._newlines and first and char == "\n":
                continue
            self._character(char)

    def end(self) -> None:
        """The value is over."""
        rest = self._held.removesuffix("\n") if self._newlines else self._held
        if self._kinds == _TEXT:
            self._write(inner(rest) + '"')
        else:
            self._write(_typed(rest, self._kinds))

    def close(self) -> None:
        """The call is over."""
        self._write("{}" if self._before == "{" else "}")
        self._emit(CallEnd(self._index))

    def _character(self, char: str) -> None:
        if self._kinds != _TEXT:
            self._held += char
            return
        self._write(inner(self._held))
        self._held = char if char == "\n" else ""
        if char != "\n":
            self._write(inner(char))

    def _write(self, text: str) -> None:
        if text:
            self._emit(CallArguments(self._index, text))


def _typed(text: str, types: frozenset[str]) -> str:
    """The JSON text of a value that may be other than a string."""
    if fits(text, types) or (types and "string" not in types and fits(text, frozenset())):
        return text.strip()
    if "boolean" in types and text.strip().lower() in ("true", "false"):
        return text.strip().lower()
    return dumped(text)
