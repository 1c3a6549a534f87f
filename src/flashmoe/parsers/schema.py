"""What a tool's JSON schema says about one parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.parsers.base import Tools
from flashmoe.parsers.json_text import parsed

Schema = Mapping[str, Any]
ANY_OBJECT: Schema = {"type": "object"}


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of a tool, which clients wrap in {"type": "function", "function": ...}."""
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def schemas(tools: Tools) -> dict[str, Schema]:
    """Name -> schema of the arguments, in the order of `tools`."""
    functions = [function_of(tool) for tool in tools]
    return {str(f.get("name", "")): _arguments(f.get("parameters")) for f in functions}


def properties(schema: Schema) -> dict[str, Schema]:
    """Parameter -> its schema, with the definitions that it may refer to."""
    found = schema.get("properties")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    items = found.items() if isinstance(found, Mapping) else ()
    return {str(k): {**v, **shared} for k, v in items if isinstance(v, Mapping)}


def kinds(schema: Schema) -> frozenset[str]:
    """The JSON types that a value may have; none named: empty."""
    given = schema.get("type")
    if given is None:
        options = schema.get("anyOf") or schema.get("oneOf") or ()
        options = options if isinstance(options, list) else ()
        parts = [kinds(part) for part in options if isinstance(part, Mapping)]
        return frozenset().union(*parts) if parts and all(parts) else frozenset()
    return frozenset(given if isinstance(given, list) else [given])


def fits(text: str, types: frozenset[str]) -> bool:
    """Whether `text` is JSON of one of `types` (any type if there is none)."""
    try:
        value = parsed(text)
    except ValueError:
        return False
    return not types or not types.isdisjoint(_types_of(value))


def _types_of(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == int(value) else {"number"}
    names: dict[type, str] = {str: "string", dict: "object", list: "array"}
    return {names[type(value)]}


def _arguments(given: Any) -> Schema:
    return given if isinstance(given, Mapping) and given else ANY_OBJECT
