"""JSON that someone else wrote, read without trust: every field typed and bounded."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, NoReturn

from flashmoe.errors import FlashMoeError

MAX_INT = 2**53


def parse(data: bytes, where: object, error: type[FlashMoeError]) -> dict[str, Any]:
    """UTF-8 JSON text of one object -> dict. Duplicate keys, NaN and Infinity are refused.

    Raises:
        error: the text is not valid JSON or not an object.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as cause:
        raise error("is not valid JSON", where=where, got=repr(str(cause))) from cause
    if not isinstance(value, dict):
        raise error("is not a JSON object", where=where, got=type(value).__name__)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    for key in result:
        key.encode("utf-8")  # a lone surrogate could not be printed later
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Fields:
    """Typed access to one JSON object; `end` refuses keys that nobody read."""

    def __init__(self, raw: object, where: str, error: type[FlashMoeError]) -> None:
        self.where, self.error = where, error
        if not isinstance(raw, dict):
            raise error("bad field", where=where, expected="an object", got=_kind(raw))
        self._raw = raw
        self._seen: set[str] = set()

    def integer(self, key: str, low: int = 0, high: int = MAX_INT) -> int:
        """An integer in [low, high]."""
        return self._checked_int(self._get(key), key, low, high)

    def text(self, key: str) -> str:
        """A non-empty string that can be printed."""
        value = self._get(key)
        if not isinstance(value, str) or not value or value != shown(value):
            self.fail(key, "a non-empty string without control characters", value)
        return value

    def string(self, key: str) -> str:
        """A string, perhaps empty."""
        value = self._get(key)
        if not isinstance(value, str):
            self.fail(key, "a string", value)
        return value

    def names(self) -> list[str]:
        """The keys that are there."""
        return list(self._raw)

    def choice(self, key: str, *allowed: str) -> str:
        """One of the given strings."""
        value = self._get(key)
        if value not in allowed:
            self.fail(key, " | ".join(allowed), value)
        return str(value)

    def integers(self, key: str, low: int = 0, high: int = MAX_INT) -> tuple[int, ...]:
        """A list of integers in [low, high]."""
        return tuple(self._checked_int(value, key, low, high) for value in self.items(key))

    def items(self, key: str) -> list[Any]:
        """A list."""
        value = self._get(key)
        if not isinstance(value, list):
            self.fail(key, "a list", value)
        return value

    def fields(self, key: str) -> Fields:
        """A nested object."""
        return Fields(self._get(key), f"{self.where}: {key}", self.error)

    def members(self) -> dict[str, Fields]:
        """All members, each of them an object."""
        self._seen.update(self._raw)
        return {
            key: Fields(value, f"{self.where}: {key}", self.error)
            for key, value in self._raw.items()
        }

    def value(self, key: str) -> Any:
        """Any JSON value."""
        return self._get(key)

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._raw

    def end(self) -> None:
        """Every key has been read."""
        unknown = sorted(self._raw.keys() - self._seen)
        if unknown:
            raise self.error("unknown key", where=self.where, got=", ".join(unknown[:5]))

    def fail(self, key: str, expected: object, got: object) -> NoReturn:
        """Refuse the value of a key."""
        raise self.error(
            "bad field", where=f"{self.where}: {key}", expected=expected, got=_kind(got)
        )

    def _get(self, key: str) -> Any:
        self._seen.add(key)
        if key not in self._raw:
            raise self.error("field is missing", where=f"{self.where}: {key}")
        return self._raw[key]

    def _checked_int(self, value: object, key: str, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(key, f"an integer in [{low}, {high}]", value)
        return value


def shown(text: str) -> str:
    """A text that a terminal can print: control characters and lone surrogates, as names of files
    may have them, are replaced."""
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _kind(value: object) -> str:
    """A short, printable form of any JSON value."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
