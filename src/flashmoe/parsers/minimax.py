"""MiniMax-M2: <invoke name="f"> and <parameter name="a"> inside <minimax:tool_call>."""

from __future__ import annotations

from flashmoe.parsers.xml_calls import Tags

TAGS = Tags(
    open="<minimax:tool_call>",
    close="</minimax:tool_call>",
    function='<invoke name="',
    function_end="</invoke>",
    parameter='<parameter name="',
    parameter_end="</parameter>",
    quoted=True,
    newlines=False,
)
