"""Calls in a section of their own, each with a head and JSON arguments (DeepSeek, Kimi)."""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.parsers.machine import JsonCallMachine, Markers
from flashmoe.parsers.plain import THINK


@dataclass(frozen=True)
class Section:
    """The markers: of the section, of a call, and between its head and what follows."""

    open: str
    close: str
    call: str
    split: str
    call_end: str

    @property
    def markers(self) -> tuple[str, ...]:
        """All of them, for a vocabulary to say which are tokens."""
        return (*THINK, self.open, self.close, self.call, self.split, self.call_end)


class SectionParser(JsonCallMachine):
    """A call streams from its "{" on. Subclasses say how the head names the function."""

    section: Section

    def __init__(self, markers: Markers, opens_reasoning: bool) -> None:
        self._raw = self._head = ""
        super().__init__(markers, opens_reasoning, THINK, self.section.open)

    def named(self, head: str, after: str) -> tuple[str, str | None]:
        """(function, the model's id of the call) from the text around the split."""
        raise NotImplementedError

    def call(self) -> None:
        """After the opening marker."""
        self._raw = self.section.open
        self.go(self._between, self.section.call, self.section.close)

    def end(self) -> None:
        """A reply that breaks off before its call has begun."""
        if self.state in (self._between, self._name, self._before_json, self._after_json):
            self._spill_raw()
        super().end()

    def _between(self, atom: str) -> None:
        if atom == self.section.call:
            self._raw += atom
            self._head = ""
            self.go(self._name, self.section.split, self.section.call_end)
        else:
            self._raw += atom if atom != self.section.close or self._raw else ""
            if atom == self.section.close:
                self._spill_raw()

    def _name(self, atom: str) -> None:
        self._raw += atom
        if atom == self.section.split:
            self._rest = ""
            self.go(self._before_json, self.section.call_end, self.section.close)
        elif atom in (self.section.call_end, self.section.close):
            self._spill_raw()
        else:
            self._head += atom

    def _before_json(self, atom: str) -> None:
        if atom == "{":
            index = self.start_call(*self.named(self._head, self._rest))
            self._raw = ""
            self.arguments(index, self._after_json, self.section.call_end, self.section.close)
            self.state(atom)
            return
        self._raw += atom
        self._rest += atom
        if len(atom) > 1:
            self._spill_raw()

    def _after_json(self, atom: str) -> None:
        if atom in (self.section.call_end, self.section.close):
            self._raw = "" if self._raw.strip() in ("", "```") else self._raw
            self.go(self._between, self.section.call, self.section.close)
            if atom == self.section.close:
                self._between(atom)
        else:
            self._raw += atom

    def _spill_raw(self) -> None:
        if self._raw.strip() in ("", "```"):
            self.text()
        else:
            self.spill(self._raw)
        self._raw = ""
