"""Calls as tags with one tag per parameter; the values are typed by the tool's schema."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flashmoe.parsers.base import Tools
from flashmoe.parsers.machine import CallMachine, Markers
from flashmoe.parsers.parameters import Parameters
from flashmoe.parsers.plain import THINK
from flashmoe.parsers.schema import ANY_OBJECT, schemas

_ATTRIBUTE = re.compile(r'\bstring\s*=\s*"(true|false)"')


@dataclass(frozen=True)
class Tags:
    """The tags of a format. `function` and `parameter` are beginnings, up to the name.

    quoted: a name ends with a quotation mark, and attributes may follow before the ">".
    newlines: values stand on lines of their own. typed: a parameter says whether it is a string.
    """

    open: str
    close: str
    function: str
    function_end: str
    parameter: str
    parameter_end: str
    quoted: bool
    newlines: bool
    typed: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """All of them, for a vocabulary to say which are tokens."""
        ends = (self.function_end, self.parameter, self.parameter_end)
        return (*THINK, self.open, self.close, self.function, *ends)


class XmlParser(CallMachine):
    """Parses calls of any such format."""

    def __init__(self, markers: Markers, opens_reasoning: bool, tags: Tags, tools: Tools) -> None:
        self._tags, self._schemas = tags, schemas(tools)
        self._raw = self._head = ""
        self._parameters: Parameters | None = None
        super().__init__(markers, opens_reasoning, THINK, tags.open)

    def call(self) -> None:
        """After the opening tag."""
        self._raw = self._tags.open
        self._outside()

    def end(self) -> None:
        """A reply that breaks off within a call."""
        if self.state == self._value:
            self._end_value()
        if self._parameters is not None:
            self._end_call()
        elif self.state in (self._between_calls, self._name):
            self._spill_raw()
        super().end()

    def _outside(self) -> None:
        self.go(self._between_calls, self._tags.function, self._tags.close)

    def _between_calls(self, atom: str) -> None:
        if atom == self._tags.function:
            self._raw += atom
            self._head = ""
            self.go(self._name)
        elif atom == self._tags.close:
            self._raw += atom if self._raw.strip() else ""
            self._spill_raw()
        else:
            self._raw += atom

    def _name(self, atom: str) -> None:
        self._raw += atom
        if atom == self._tags.close:
            self._spill_raw()
        elif atom != ">":
            self._head += atom
        else:
            self._begin_call()

    def _begin_call(self) -> None:
        name, self._raw = self._named(self._head), ""
        schema = self._schemas.get(name, ANY_OBJECT)
        index, newlines = self.start_call(name), self._tags.newlines
        self._parameters = Parameters(self.emit, index, schema, newlines=newlines)
        self._within()

    def _within(self) -> None:
        tags = self._tags
        self.go(self._between_parameters, tags.parameter, tags.function_end, tags.close)

    def _between_parameters(self, atom: str) -> None:
        if atom == self._tags.parameter:
            self._head = ""
            self.go(self._key)
        elif atom == self._tags.function_end:
            self._end_call()
            self._outside()
        elif atom == self._tags.close:
            self._end_call()
            self._spill_raw()
        else:
            self._raw += atom

    def _key(self, atom: str) -> None:
        if atom != ">":
            self._head += atom
            return
        stated = _ATTRIBUTE.search(self._head) if self._tags.quoted else None
        types = None if stated is None else frozenset({"string"} if stated[1] == "true" else ())
        assert self._parameters is not None
        self._parameters.begin(self._named(self._head), types=types)
        self.go(self._value, self._tags.parameter_end)

    def _value(self, atom: str) -> None:
        assert self._parameters is not None
        if atom == self._tags.parameter_end:
            self._end_value()
        elif atom == self._tags.close:
            self._end_value()
            self.state(atom)
        else:
            self._parameters.push(atom)

    def _end_value(self) -> None:
        assert self._parameters is not None
        self._parameters.end()
        self._within()

    def _end_call(self) -> None:
        assert self._parameters is not None
        self._parameters.close()
        self._parameters = None

    def _spill_raw(self) -> None:
        """Text between the tags that is no call is content; blank space there is nothing."""
        if self._raw.strip():
            self.spill(self._raw)
        else:
            self.text()
        self._raw = ""

    def _named(self, head: str) -> str:
        return head.partition('"')[0] if self._tags.quoted else head.strip()
