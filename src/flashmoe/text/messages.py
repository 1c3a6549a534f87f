"""Chat messages as clients send them, brought into the one shape that templates expect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe.errors import UsageError

Message = Mapping[str, Any]


_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def normalise(messages: Sequence[Message], *, strict: bool = True) -> list[dict[str, Any]]:
    """Copies of `messages` whose tool-call arguments are mappings; clients send them as JSON text.

    strict: arguments that are no JSON object are an error; otherwise they stay as they are (a
    model's broken call that a client sends back).

    Raises UsageError naming the message when it has no role or its arguments are no JSON object.
    """
    if not messages:
        raise UsageError("there are no messages", where="messages")
    return [_normalise(message, f"messages[{i}]", strict) for i, message in enumerate(messages)]


def move_reasoning(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`turns` with an assistant's <think> part taken out of its content, to "reasoning_content".

    Templates do the same, by looking for the tags in the content: which they cannot, once client
    text is kept apart from markup.
    """
    return [_split_thought(turn) if turn["role"] == "assistant" else turn for turn in turns]


def arguments_as_text(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`turns` with mappings of arguments written as JSON, for templates that paste text."""
    return [
        turn | {"tool_calls": [_with_text(call) for call in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for turn in turns
    ]


def _split_thought(turn: dict[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    found = _THOUGHT.match(content) if isinstance(content, str) else None
    if found is None or not isinstance(content, str):
        return turn
    thought = turn.get("reasoning_content") or found[1].strip("\n")
    return turn | {"content": content[found.end() :], "reasoning_content": thought}


def _with_text(call: Any) -> Any:
    if "function" in call:
        return {**call, "function": _with_text(call["function"])}
    arguments = call["arguments"]
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "arguments": arguments}


def _normalise(message: Message, where: str, strict: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError('a message is an object with a "role"', where=where)
    result = dict(message)
    if calls := message.get("tool_calls"):
        result["tool_calls"] = _normalise_calls(calls, f"{where}.tool_calls", strict)
    return result


def _normalise_calls(calls: Any, where: str, strict: bool) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise UsageError("wrong type", where=where, expected="a list", got=type(calls).__name__)
    return [_with_mapping(call, f"{where}[{i}]", strict) for i, call in enumerate(calls)]


def _with_mapping(call: Any, where: str, strict: bool) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise UsageError("a tool call is an object", where=where, got=type(call).__name__)
    if "function" in call:
        return {**call, "function": _with_mapping(call["function"], f"{where}.function", strict)}
    return {**call, "arguments": _arguments(call.get("arguments"), f"{where}.arguments", strict)}


def _arguments(value: Any, where: str, strict: bool) -> Any:
    try:
        return _mapping(value, where)
    except UsageError:
        if strict or not isinstance(value, str):
            raise
        return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"arguments are not valid JSON ({error})", where=where) from error
    if not isinstance(value, Mapping):
        raise UsageError("wrong type", where=where, expected="an object", got=type(value).__name__)
    return dict(value)
