"""Messages and tools of OpenAI's shape, checked and brought to what templates expect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flashmoe.errors import RequestError
from flashmoe.server.requests.base import Record
from flashmoe.server.settings import Limits
from flashmoe.server.task import Choice, Tools, check_count

ROLES = ("system", "developer", "user", "assistant", "tool")
_MODES: tuple[Choice, ...] = ("none", "auto", "required")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,256}")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def chat_messages(given: Sequence[Record], limits: Limits) -> list[Record]:
    """OpenAI messages with contents as text and system messages in front as one.

    Raises RequestError naming the message.
    """
    check_count("messages", len(given), limits.messages)
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(given)]
    return join_systems(messages)


def _message(message: Record, where: str) -> Record:
    role = message.get("role")
    if role not in ROLES:
        told = f"{where}.role: expected one of {', '.join(ROLES)}"
        raise RequestError(told, param=f"{where}.role", code="invalid_value")
    result: Record = {
        "role": "system" if role == "developer" else role,
        "content": content_text(message.get("content"), f"{where}.content"),
    }
    thought = message.get("reasoning_content") or message.get("reasoning")
    if role == "assistant" and isinstance(thought, str):
        result["reasoning_content"] = thought
    if role == "assistant" and message.get("tool_calls"):
        result["tool_calls"] = _calls(message["tool_calls"], f"{where}.tool_calls")
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            result[name] = message[name]
    return result


def content_text(content: Any, where: str) -> str:
    """A content (text, null, or a list of text parts) as text. Raises RequestError."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _wrong(where, "expected text or a list of parts")
    return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _TEXT_PARTS:
        raise _wrong(f"{where}.type", f"this model takes text only, got {kind!r}")
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise _wrong(f"{where}.text", "expected text")
    return text


def _calls(calls: Any, where: str) -> list[Record]:
    if not isinstance(calls, list):
        raise _wrong(where, "expected a list")
    return [_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, where: str) -> Record:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _wrong(f"{where}.function", "expected an object with a name")
    arguments = function.get("arguments")
    return tool_call(str(call.get("id") or ""), function["name"], arguments)


def tool_call(id: str, name: str, arguments: Any) -> Record:
    """A call in OpenAI's shape; arguments: JSON text, or the object."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def join_systems(messages: Sequence[Record]) -> list[Record]:
    """System messages in front joined to one: templates know one."""
    count = 0
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    if count < 2:
        return list(messages)
    text = "\n\n".join(message["content"] for message in messages[:count])
    return [{"role": "system", "content": text}, *messages[count:]]


def chat_tools(
    given: Sequence[Record] | None, choice: Any, parallel: bool | None, limits: Limits
) -> Tools:
    """Tools and tool_choice of OpenAI's chat API. Raises RequestError."""
    check_count("tools", len(given or ()), limits.tools)
    for index, tool in enumerate(given or ()):
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise _wrong(f"tools[{index}]", 'expected {"type": "function", "function": {…}}')
    functions = [
        function_tool(tool["function"], f"tools[{i}].function")
        for i, tool in enumerate(given or ())
    ]
    return chosen(functions, choice, parallel)


def function_tool(function: Record, where: str, schema: str = "parameters") -> Record:
    """One function in OpenAI's shape. schema: the field with its parameters."""
    name = function.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise _wrong(f"{where}.name", "expected a name of letters, digits, _ and -")
    parameters = function.get(schema)
    if parameters is not None and not isinstance(parameters, dict):
        raise _wrong(f"{where}.{schema}", "expected a JSON schema")
    result: Record = {"name": name, "description": str(function.get("description") or "")}
    result["parameters"] = parameters or {"type": "object", "properties": {}}
    if function.get("strict"):
        result["strict"] = True
    return {"type": "function", "function": result}


def chosen(
    functions: Sequence[Record], choice: Any, parallel: bool | None, ignored: Sequence[str] = ()
) -> Tools:
    """Functions with OpenAI's tool_choice. Raises RequestError for one that cannot be met."""
    mode, named = _choice(choice)
    names = [tool["function"]["name"] for tool in functions]
    if named is not None and named not in names:
        raise _wrong("tool_choice", f"there is no tool {named!r}")
    if mode == "required" and not names:
        raise _wrong("tool_choice", "a call is required, but there are no tools")
    return Tools(functions, mode, named, parallel is not False, ignored)


def _choice(choice: Any) -> tuple[Choice, str | None]:
    if choice is None:
        return "auto", None
    for mode in _MODES:
        if choice == mode:
            return mode, None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = (function if isinstance(function, dict) else choice).get("name")
        if isinstance(name, str):
            return "named", name
    raise _wrong("tool_choice", 'expected "none", "auto", "required" or a function')


def _wrong(param: str, told: str) -> RequestError:
    return RequestError(f"{param}: {told}", param=param, code="invalid_value")
