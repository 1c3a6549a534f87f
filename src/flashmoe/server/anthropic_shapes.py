"""Anthropic's messages and tools in OpenAI's shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flashmoe.errors import RequestError
from flashmoe.server.messages import chosen, function_tool, join_systems, tool_call
from flashmoe.server.requests.anthropic import CountBody
from flashmoe.server.requests.base import Record
from flashmoe.server.settings import Limits
from flashmoe.server.task import Form, Tools, check_count

# Claude Code puts a line into its system prompt that changes with every request; what follows it
# could never be found in the prefix cache.
_BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*\n*", re.IGNORECASE | re.MULTILINE)
_SERVER_TOOLS = re.compile(r"[a-z_]+_\d{8}")


def conversation(body: CountBody, limits: Limits) -> list[Record]:
    """System text and messages. Raises RequestError naming the part."""
    check_count("messages", len(body.messages), limits.messages)
    system = without_billing(_text(body.system, "system"))
    messages: list[Record] = [{"role": "system", "content": system}] if system else []
    for index, message in enumerate(body.messages):
        messages += _message(message, f"messages[{index}]")
    return join_systems(messages)


def without_billing(system: str) -> str:
    """The system text without Claude Code's changing header."""
    return _BILLING.sub("", system)


def _message(message: Record, where: str) -> list[Record]:
    role, content = message.get("role"), message.get("content")
    if role == "user":
        return _user(content, where)
    if role == "assistant":
        return [_assistant(content, where)]
    if role == "system":
        return [{"role": "system", "content": _text(content, f"{where}.content")}]
    raise _wrong(f"{where}.role", 'expected "user" or "assistant"')


def _user(content: Any, where: str) -> list[Record]:
    """Results of tools are messages of their own, in front of what the user says."""
    blocks = _blocks(content, where)
    results = [
        _result(block, f"{where}.content[{i}]")
        for i, block in enumerate(blocks)
        if block["type"] == "tool_result"
    ]
    said = [block for block in blocks if block["type"] != "tool_result"]
    if not said and results:
        return results
    return [*results, {"role": "user", "content": _text(said, f"{where}.content")}]


def _result(block: Record, where: str) -> Record:
    text = _text(block.get("content"), f"{where}.content")
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": text}


def _assistant(content: Any, where: str) -> Record:
    blocks = _blocks(content, where)
    said = [block for block in blocks if block["type"] == "text"]
    message: Record = {"role": "assistant", "content": _text(said, f"{where}.content")}
    thoughts = [str(b.get("thinking") or "") for b in blocks if b["type"] == "thinking"]
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    calls = [_call(b, f"{where}.content") for b in blocks if b["type"] == "tool_use"]
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Record, where: str) -> Record:
    name, given = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(given, dict):
        raise _wrong(where, "a tool_use has a name and an input object")
    return tool_call(str(block.get("id") or ""), name, given)


def _blocks(content: Any, where: str) -> list[Record]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "expected text or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise _wrong(f"{where}.content[{index}]", "expected a block with a type")
    return content


def _text(content: Any, where: str) -> str:
    """Text of a string, null or a list of text blocks."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _wrong(where, "expected text or a list of blocks")
    return "\n".join(_block_text(block, f"{where}[{i}]") for i, block in enumerate(content))


def _block_text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind != "text" or not isinstance(block.get("text"), str):
        raise _wrong(where, f"this model takes text only, got {kind!r}")
    return str(block["text"])


def anthropic_tools(body: CountBody, limits: Limits) -> Tools:
    """Tools and tool_choice; Anthropic's own server tools are ignored, by name."""
    check_count("tools", len(body.tools or ()), limits.tools)
    functions, ignored = [], []
    for index, tool in enumerate(body.tools or ()):
        kind = tool.get("type") or "custom"
        if isinstance(kind, str) and _SERVER_TOOLS.fullmatch(kind):
            ignored.append(str(tool.get("name") or kind))
        elif kind == "custom":
            functions.append(function_tool(tool, f"tools[{index}]", "input_schema"))
        else:
            raise _wrong(f"tools[{index}].type", f"unknown kind {kind!r}")
    return _chosen(functions, body.tool_choice, ignored)


def _chosen(functions: Sequence[Record], given: Record | None, ignored: Sequence[str]) -> Tools:
    kind = (given or {}).get("type", "auto")
    parallel = not (given or {}).get("disable_parallel_tool_use", False)
    words: dict[Any, Any] = {"auto": "auto", "none": "none", "any": "required", "tool": given}
    if not isinstance(kind, str) or kind not in words:
        raise _wrong("tool_choice.type", 'expected "auto", "any", "tool" or "none"')
    return chosen(functions, words[kind], parallel, ignored)


def anthropic_form(body: CountBody) -> Form | None:
    """The form of output_config.format or output_format. Raises RequestError."""
    given = (body.output_config or {}).get("format") or body.output_format
    if given is None:
        return None
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict) or given.get("type") != "json_schema":
        raise _wrong("output_config.format", 'expected {"type": "json_schema", "schema": {…}}')
    return Form("json_schema", schema)


def _wrong(param: str, told: str) -> RequestError:
    return RequestError(f"{param}: {told}", param=param, code="invalid_value")
