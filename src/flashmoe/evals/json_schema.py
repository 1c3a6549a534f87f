"""Whether a JSON value is what a schema allows: the part of JSON Schema that tools use.

Known: type, enum, const, properties, required, additionalProperties (false or a schema), items,
anyOf and oneOf. Other words of a schema are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def allowed(value: Any, schema: Any) -> bool:
    """Whether a parsed JSON value is valid under a schema (see the module for what is known)."""
    if not isinstance(schema, Mapping):
        return schema is not False
    choices = schema.get("anyOf") or schema.get("oneOf")
    return (
        _has_type(value, schema.get("type"))
        and ("enum" not in schema or value in schema["enum"])
        and ("const" not in schema or value == schema["const"])
        and (not choices or any(allowed(value, choice) for choice in choices))
        and (not isinstance(value, dict) or _object(value, schema))
        and (not isinstance(value, list) or all(allowed(v, schema.get("items")) for v in value))
    )


def _has_type(value: Any, wanted: Any) -> bool:
    names = wanted if isinstance(wanted, list) else [wanted]
    return wanted is None or any(_is(value, name) for name in names)


def _is(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return numeric and (name == "number" or whole)
    kinds = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}
    return name in kinds and isinstance(value, kinds[name])


def _object(value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    known: Mapping[str, Any] = schema.get("properties") or {}
    others = schema.get("additionalProperties")
    return all(name in value for name in schema.get("required") or ()) and all(
        allowed(member, known.get(name, others)) for name, member in value.items()
    )
