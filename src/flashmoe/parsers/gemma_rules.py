"""Gemma 4's notation of calls as a grammar (llguidance's Lark), from the tools' schemas.

Names, types, enumerations and required parameters are held; ranges, patterns, lengths and
references are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmoe.parsers.base import Tools
from flashmoe.parsers.gemma import CLOSE, QUOTE
from flashmoe.parsers.json_text import dumped
from flashmoe.parsers.machine import Markers
from flashmoe.parsers.schema import Schema, kinds, properties, schemas

_NUMBER = r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/"
_INTEGER = r"/-?(0|[1-9][0-9]{0,17})/"
_KEY = r"/[A-Za-z_][A-Za-z0-9_]{0,63}/"
_ANY_TEXT = r"/(.|\n)*/"
_SIMPLE = {"number": _NUMBER, "integer": _INTEGER, "boolean": '"true" | "false"', "null": '"null"'}


def gemma_rules(markers: Markers, tools: Tools) -> str:
    """One call, from behind its opening marker; the next has a marker of its own."""
    rules = _Rules(markers.lark(QUOTE), as_token=markers.id(QUOTE) is not None)
    calls = [
        f"{dumped(f'call:{name}')} {rules.value({'type': 'object', **schema})}"
        for name, schema in schemas(tools).items()
    ]
    start = f"start: ({' | '.join(calls)}) {markers.lark(CLOSE)}"
    return "\n".join([start, *rules.lines]) + "\n"


class _Rules:
    """Rules of values, each under a name of its own."""

    def __init__(self, quote: str, *, as_token: bool) -> None:
        self._quote = quote
        ending = f"{quote} text {quote}\ntext: {_ANY_TEXT}"
        if not as_token:
            ending = f"{quote} text\ntext[suffix={quote}]: {_ANY_TEXT}"
        self.lines = [
            f"string: {ending}",
            f'any: string | {_NUMBER} | "true" | "false" | "null" | list | map',
            'list: "[" (any ("," any)*)? "]"',
            f'map: "{{" (pair ("," pair)*)? "}}"\npair: {_KEY} ":" any',
        ]

    def value(self, schema: Schema) -> str:
        """The name of a rule for values that follow a schema."""
        name = f"r{len(self.lines)}"
        self.lines.append("")  # its place: what it uses gets other names
        self.lines[int(name[1:])] = f"{name}: {self._alternatives(schema)}"
        return name

    def _alternatives(self, schema: Schema) -> str:
        if isinstance(schema.get("enum"), Sequence) and schema["enum"]:
            return " | ".join(map(self._literal, schema["enum"]))
        return " | ".join(self._of_kind(kind, schema) for kind in sorted(kinds(schema))) or "any"

    def _of_kind(self, kind: str, schema: Schema) -> str:
        if kind == "object" and properties(schema):
            return self._object(schema)
        if kind == "array" and isinstance(schema.get("items"), dict):
            item = self.value(schema["items"])
            return f'"[" ({item} ("," {item})*)? "]"'
        return {"object": "map", "array": "list", "string": "string"}.get(
            kind, _SIMPLE.get(kind, "any")
        )

    def _object(self, schema: Schema) -> str:
        """Its keys in alphabetical order, as the template writes them; commas only between."""
        first, later = '"}"', '"}"'
        required = schema.get("required") or ()
        for key, kind in sorted(properties(schema).items(), reverse=True):
            part = f"{dumped(key + ':')} {self.value(kind)} {later}"
            again, skip_first, skip_later = f'"," {part}', f" | {first}", f" | {later}"
            optional = key not in required
            first = self._named(part + skip_first * optional)
            later = self._named(again + skip_later * optional)
        return f'"{{" {first}'

    def _named(self, rule: str) -> str:
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}: {rule}")
        return name

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote} {dumped(value)} {self._quote}"
        return dumped(dumped(value))
