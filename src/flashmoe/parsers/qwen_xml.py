"""Qwen3-Coder, Qwen3-Next-Coder, Qwen3.5: <function=f> and <parameter=a> inside <tool_call>."""

from __future__ import annotations

from flashmoe.parsers.xml_calls import Tags

TAGS = Tags(
    open="<tool_call>",
    close="</tool_call>",
    function="<function=",
    function_end="</function>",
    parameter="<parameter=",
    parameter_end="</parameter>",
    quoted=False,
    newlines=True,
)
