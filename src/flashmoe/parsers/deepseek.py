"""DeepSeek-V3, R1 and V3.1: calls in a section between marker tokens."""

from __future__ import annotations

from flashmoe.parsers.sections import Section, SectionParser

SECTION = Section(
    open="<｜tool▁calls▁begin｜>",  # noqa: RUF001
    close="<｜tool▁calls▁end｜>",  # noqa: RUF001
    call="<｜tool▁call▁begin｜>",  # noqa: RUF001
    split="<｜tool▁sep｜>",  # noqa: RUF001
    call_end="<｜tool▁call▁end｜>",  # noqa: RUF001
)


class DeepSeekParser(SectionParser):
    """V3: function<sep>name, then a fenced block of JSON; V3.1: name<sep>JSON."""

    section = SECTION

    def named(self, head: str, after: str) -> tuple[str, str | None]:
        """The name follows the split in V3 and stands before it in V3.1."""
        name = after.strip().removesuffix("```json").strip()
        return (name or head.strip()), None
