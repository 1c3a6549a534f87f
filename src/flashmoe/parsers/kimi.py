"""Kimi-K2: functions.name:number as the head of each call, kept as the call's id."""

from __future__ import annotations

import re

from flashmoe.parsers.sections import Section, SectionParser

SECTION = Section(
    open="<|tool_calls_section_begin|>",
    close="<|tool_calls_section_end|>",
    call="<|tool_call_begin|>",
    split="<|tool_call_argument_begin|>",
    call_end="<|tool_call_end|>",
)
_ID = re.compile(r"(?:functions\.)?(.*?)(?::\d+)?", re.DOTALL)


class KimiParser(SectionParser):
    """The template refers to a call by its id in later turns."""

    section = SECTION

    def named(self, head: str, after: str) -> tuple[str, str | None]:
        """The function's name out of the id, and the id."""
        found = _ID.fullmatch(head.strip())
        assert found is not None  # it matches any text
        return found[1], head.strip()
