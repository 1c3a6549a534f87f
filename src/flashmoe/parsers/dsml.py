"""DeepSeek-V3.2 and V4: <invoke name="f"> and <parameter name="a" string="true|false">, all tags
marked DSML, inside <function_calls> (V3.2) or <tool_calls> (V4). "true": the value is plain text;
"false": it is JSON."""

from __future__ import annotations

from flashmoe.parsers.xml_calls import Tags

MARK = "｜DSML｜"  # noqa: RUF001
V32, V4 = "function_calls", "tool_calls"


def tags(section: str) -> Tags:
    """Of a format whose calls stand in this section."""
    return Tags(
        open=f"<{MARK}{section}>",
        close=f"</{MARK}{section}>",
        function=f'<{MARK}invoke name="',
        function_end=f"</{MARK}invoke>",
        parameter=f'<{MARK}parameter name="',
        parameter_end=f"</{MARK}parameter>",
        quoted=True,
        newlines=False,
        typed=True,
    )
