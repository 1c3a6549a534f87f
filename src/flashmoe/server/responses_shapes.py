"""Input and tools of OpenAI's Responses API in the shape of its chat API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmoe.errors import RequestError
from flashmoe.server.messages import chosen, content_text, function_tool, join_systems, tool_call
from flashmoe.server.requests.base import Record
from flashmoe.server.requests.openai import ResponsesBody
from flashmoe.server.sampling import schema_of
from flashmoe.server.settings import Limits
from flashmoe.server.task import Form, Tools, check_count

# Fields that ask for something this server would have to remember between requests.
_STATE = ("previous_response_id", "conversation", "prompt")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def refuse_state(body: ResponsesBody) -> None:
    """Raises RequestError for what a server without memory cannot do."""
    for name in _STATE:
        if getattr(body, name) is not None:
            told = f"{name}: this server keeps no state; send the whole conversation as input"
            raise RequestError(told, param=name, code="stateless_server")
    if body.background:
        told = "background: answers are not kept; ask without it"
        raise RequestError(told, param="background", code="stateless_server")


def conversation(body: ResponsesBody, limits: Limits) -> list[Record]:
    """Instructions and input as messages. Raises RequestError naming the item."""
    messages: list[Record] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    items: Sequence[Record] = []
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        items = body.input or []
    check_count("input", len(items), limits.messages)
    for index, item in enumerate(items):
        _add(messages, item, f"input[{index}]")
    if not any(message["role"] != "system" for message in messages):
        messages.append({"role": "user", "content": ""})  # Codex looks whether we live this way
    return join_systems(messages)


def _add(messages: list[Record], item: Record, where: str) -> None:
    """Calls and reasoning belong to the assistant's message before them."""
    match item.get("type", "message"):
        case "message":
            messages.append(_message(item, where))
        case "function_call":
            _assistant(messages).setdefault("tool_calls", []).append(_call(item, where))
        case "function_call_output":
            messages.append(_output(item, where))
        case "reasoning":
            _assistant(messages)["reasoning_content"] = _reasoning(item)
        case "item_reference":
            told = f"{where}: items are not kept; send them whole"
            raise RequestError(told, param=where, code="stateless_server")
        case kind:
            raise _wrong(f"{where}.type", f"unknown kind {kind!r}")


def _message(item: Record, where: str) -> Record:
    role = item.get("role")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"expected one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": content_text(item.get("content"), f"{where}.content")}


def _assistant(messages: list[Record]) -> Record:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _call(item: Record, where: str) -> Record:
    if not isinstance(item.get("name"), str):
        raise _wrong(f"{where}.name", "expected a function's name")
    return tool_call(str(item.get("call_id") or ""), item["name"], item.get("arguments"))


def _output(item: Record, where: str) -> Record:
    text = content_text(item.get("output"), f"{where}.output")
    return {"role": "tool", "tool_call_id": str(item.get("call_id") or ""), "content": text}


def _reasoning(item: Record) -> str:
    parts = item.get("content") or []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def response_tools(body: ResponsesBody, limits: Limits) -> Tools:
    """Functions; hosted tools (web search and such) are ignored, by name. Raises RequestError."""
    check_count("tools", len(body.tools or ()), limits.tools)
    functions, ignored = [], []
    for index, tool in enumerate(body.tools or ()):
        if tool.get("type") == "function":
            functions.append(function_tool(tool, f"tools[{index}]"))
        else:
            ignored.append(str(tool.get("type")))
    return chosen(functions, _choice(body.tool_choice), body.parallel_tool_calls, ignored)


def _choice(given: Any) -> Any:
    """Of the choices among several tools only their mode is kept."""
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        return given.get("mode", "auto")
    return given


def response_form(body: ResponsesBody) -> Form | None:
    """The form in text.format. Raises RequestError."""
    given = (body.text.format if body.text else None) or {"type": "text"}
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return Form("json_object")
        case "json_schema":
            return Form("json_schema", schema_of(given, "text.format"))
    raise _wrong("text.format.type", 'expected "text", "json_object" or "json_schema"')


def _wrong(param: str, told: str) -> RequestError:
    return RequestError(f"{param}: {told}", param=param, code="invalid_value")
