"""Chat messages as clients send them, brought into the one shape that templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe.errors import UsageError

Message = Mapping[str, Any]


def normalise(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of `messages` whose tool-call arguments are mappings; clients send them as JSON text.

    Raises UsageError naming the message when it has no role or its arguments are no JSON object.
    """
    if not messages:
        raise UsageError("there are no messages", where="messages")
    return [_normalise(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _normalise(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError('a message is an object with a "role"', where=where)
    result = dict(message)
    if calls := message.get("tool_calls"):
        result["tool_calls"] = _normalise_calls(calls, f"{where}.tool_calls")
    return result


def _normalise_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise UsageError("wrong type", where=where, expected="a list", got=type(calls).__name__)
    return [_with_mapping(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _with_mapping(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise UsageError("a tool call is an object", where=where, got=type(call).__name__)
    if "function" in call:
        return {**call, "function": _with_mapping(call["function"], f"{where}.function")}
    return {**call, "arguments": _arguments(call.get("arguments"), f"{where}.arguments")}


def _arguments(value: Any, where: str) -> dict[str, Any]:
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
