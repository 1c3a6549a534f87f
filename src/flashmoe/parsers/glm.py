"""GLM-4.5 and later: <tool_call>f, then <arg_key>k</arg_key> and <arg_value>v</arg_value>."""

from __future__ import annotations

from flashmoe.parsers.base import Tools
from flashmoe.parsers.machine import CallMachine, Markers
from flashmoe.parsers.parameters import Parameters
from flashmoe.parsers.plain import THINK
from flashmoe.parsers.schema import ANY_OBJECT, schemas

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"
MARKERS = (*THINK, OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END)


class GlmParser(CallMachine):
    """Values are typed by the tool's schema."""

    def __init__(self, markers: Markers, opens_reasoning: bool, tools: Tools) -> None:
        self._schemas = schemas(tools)
        self._raw = ""
        self._parameters: Parameters | None = None
        super().__init__(markers, opens_reasoning, THINK, OPEN)

    def call(self) -> None:
        """After the opening tag."""
        self._raw = ""
        self.go(self._name, KEY, CLOSE)

    def end(self) -> None:
        """A reply that breaks off within a call."""
        if self.state == self._name:
            self.spill(OPEN + self._raw)
        if self.state == self._value and self._parameters is not None:
            self._parameters.end()
        if self._parameters is not None:
            self._close()
        super().end()

    def _name(self, atom: str) -> None:
        if atom not in (KEY, CLOSE):
            self._raw += atom
        elif not self._raw.strip():
            self.spill(OPEN + self._raw + atom)
        else:
            self._begin_call(self._raw.strip())
            self.state(atom)

    def _begin_call(self, name: str) -> None:
        schema = self._schemas.get(name, ANY_OBJECT)
        index = self.start_call(name)
        self._parameters = Parameters(self.emit, index, schema, newlines=False)
        self._raw = ""
        self.go(self._between, KEY, VALUE, CLOSE)

    def _between(self, atom: str) -> None:
        if atom == KEY:
            self._raw = self._raw.lstrip()
            self._key_text = ""
            self.go(self._key, KEY_END)
        elif atom == CLOSE:
            self._close()
        else:
            self._raw += atom

    def _key(self, atom: str) -> None:
        if atom == KEY_END:
            self.go(self._before_value, VALUE, CLOSE)
        else:
            self._key_text += atom

    def _before_value(self, atom: str) -> None:
        assert self._parameters is not None
        if atom == VALUE:
            self._parameters.begin(self._key_text.strip())
            self.go(self._value, VALUE_END)
        elif atom == CLOSE:
            self._close()
        elif not atom.isspace():
            self._raw += atom

    def _value(self, atom: str) -> None:
        assert self._parameters is not None
        if atom in (VALUE_END, CLOSE):
            self._parameters.end()
            self.go(self._between, KEY, CLOSE)
            if atom == CLOSE:
                self._close()
        else:
            self._parameters.push(atom)

    def _close(self) -> None:
        assert self._parameters is not None
        self._parameters.close()
        self._parameters = None
        if self._raw.strip():
            self.spill(self._raw)
        else:
            self.text()
