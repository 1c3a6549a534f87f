"""Gemma 4: <|tool_call>call:f{key:value,...}<tool_call|>, reasoning in <|channel>thought.

Its notation is JSON with bare keys and with strings between <|"|> markers, whose text stands as it
is; after the chat template of google/gemma-4-26B-A4B-it.
"""

from __future__ import annotations

from flashmoe.parsers.base import CallArguments, CallEnd, Reasoning
from flashmoe.parsers.json_text import dumped, inner, parsed
from flashmoe.parsers.machine import CallMachine, Markers

OPEN, CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
THINK = ("<|channel>", "<channel|>")
MARKERS = (*THINK, OPEN, CLOSE, QUOTE)
_THOUGHT = "thought"
_CALL = "call:"
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}


class GemmaParser(CallMachine):
    """A call streams once its name is known; its arguments become JSON as they come."""

    def __init__(self, markers: Markers, opens_reasoning: bool) -> None:
        self._raw = ""
        self._index = 0
        self._object = GemmaObject()
        super().__init__(markers, opens_reasoning, THINK, OPEN)

    def call(self) -> None:
        """After the opening marker."""
        self._raw = ""
        self.go(self._head, CLOSE)

    def end(self) -> None:
        """A reply that breaks off."""
        if self.state == self._head:
            self.spill(OPEN + self._raw)
        elif self.state == self._arguments:
            self.emit(CallEnd(self._index))
        elif self.state == self._channel:
            self._named_channel("")
        super().end()

    def _reason(self) -> None:
        self._raw = ""
        self.go(self._channel, THINK[1])

    def _channel(self, atom: str) -> None:
        """The line that names the channel."""
        if atom == THINK[1]:
            self._named_channel("")
            self.state(atom)
        elif atom == "\n":
            self._named_channel("\n")
        else:
            self._raw += atom

    def _named_channel(self, line_end: str) -> None:
        super()._reason()
        if self._raw.strip() != _THOUGHT and self._raw:
            self._fresh = False
            self.emit(Reasoning(self._raw + line_end))

    def _head(self, atom: str) -> None:
        if atom == CLOSE:
            self.spill(OPEN + self._raw + CLOSE)
        elif atom != "{":
            self._raw += atom
        elif name := self._raw.strip().removeprefix(_CALL).strip():
            self._index, self._object = self.start_call(name), GemmaObject()
            self.go(self._arguments, QUOTE, CLOSE)
            self.state(atom)
        else:
            self.spill(OPEN + self._raw + atom)

    def _arguments(self, atom: str) -> None:
        told = self._object.close() if atom == CLOSE else self._object.push(atom)
        if told:
            self.emit(CallArguments(self._index, told))
        if self._object.over:
            self.emit(CallEnd(self._index))
            if atom == CLOSE:
                self.text()
            else:
                self._raw = ""
                self.go(self._tail, CLOSE)
        elif self._object.in_string:
            self.go(self._arguments, QUOTE)
        else:
            self.go(self._arguments, QUOTE, CLOSE)

    def _tail(self, atom: str) -> None:
        if atom != CLOSE:
            self._raw += atom
        elif self._raw.strip():
            self.spill(self._raw)
        else:
            self.text()


class GemmaObject:
    """JSON of an object in Gemma's notation, an atom at a time."""

    def __init__(self) -> None:
        self._due: list[str] = []  # the brackets that will close what is open
        self._held = ""  # a key, or a value that is no string, so far
        self._comma = ""
        self._escaped = False
        self._state = self._value
        self.over = False

    @property
    def in_string(self) -> bool:
        """Whether a string between markers is open."""
        return self._state == self._string

    def push(self, atom: str) -> str:
        """The next character or marker -> more of the JSON text."""
        return self._state(atom)

    def close(self) -> str:
        """The call ends here -> what closes all that is open."""
        self.over = True
        quote = '"' if self._state in (self._string, self._quoted) else ""
        rest = _scalar(self._held) if self._state == self._scalar else ""
        if self._state == self._value and self._due and self._due[-1] == "}":
            rest = "null"  # a key without its value
        return quote + rest + "".join(reversed(self._due))

    def _value(self, atom: str) -> str:
        if atom.isspace() or atom == ",":
            return ""
        if atom in ("}", "]"):
            return self._after(atom)
        lead, self._comma = self._comma, ""
        if atom in (QUOTE, '"'):
            self._state = self._string if atom == QUOTE else self._quoted
            return lead + '"'
        if atom in ("{", "["):
            self._due.append("}" if atom == "{" else "]")
            self._state = self._key if atom == "{" else self._value
            return lead + atom
        self._held, self._state = atom, self._scalar
        return lead

    def _key(self, atom: str) -> str:
        if atom == ":":
            key, self._held = self._held.strip().strip('"'), ""
            lead, self._comma = self._comma, ""
            self._state = self._value
            return f"{lead}{dumped(key)}: "
        if atom == "}":
            return self._after(atom)
        if atom not in (QUOTE, ",") or (atom == "," and self._held.strip()):
            self._held += atom
        return ""

    def _string(self, atom: str) -> str:
        if atom != QUOTE:
            return inner(atom)
        self._state = self._after
        return '"'

    def _quoted(self, atom: str) -> str:
        """A string as JSON has it."""
        if atom == '"' and not self._escaped:
            self._state = self._after
            return atom
        told = atom if self._escaped or atom == "\\" else inner(atom)
        self._escaped = atom == "\\" and not self._escaped
        return told

    def _scalar(self, atom: str) -> str:
        if atom not in (",", "}", "]"):
            self._held += atom
            return ""
        value, self._held = _scalar(self._held), ""
        return value + self._after(atom)

    def _after(self, atom: str) -> str:
        """Behind a value."""
        self._state = self._after
        if atom == ",":
            self._comma = ", "
            self._state = self._key if self._due[-1] == "}" else self._value
        elif atom in ("}", "]"):
            self._held, self._comma = "", ""
            closed = self._due.pop()
            self.over = not self._due
            return closed
        return ""


def _scalar(text: str) -> str:
    """A number or a word as JSON; anything else as a string."""
    text = text.strip()
    try:
        parsed(text)
    except ValueError:
        return _WORDS.get(text.lower()) or dumped(text)
    return text
