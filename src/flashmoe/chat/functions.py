"""Plain Python functions as tools: the schema comes from signature and docstring."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from flashmoe.chat.tools import Tool
from flashmoe.errors import ToolError, UsageError

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    dict: {"type": "object"},
    list: {"type": "array"},
}


def function_tool(spec: str) -> Tool:
    """The function that "module:function" names; modules of the working directory are found too.

    Raises UsageError when it cannot be imported or its signature has no schema.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise UsageError("no function", where="--tool", expected="module:function", got=repr(spec))
    function = getattr(_module(module_name), name, None)
    if not callable(function):
        raise UsageError(f"the module has no function {name}", where=f"--tool {spec}")
    return tool_of(function)


def tool_of(function: Callable[..., Any]) -> Tool:
    """A function as a tool.

    Parameters have annotations: str, int, float, bool, list, dict, list[...], Literal, X | None.
    The docstring's first paragraph describes it, its "Args:" the parameters. What it gives back is
    shown as text, or as JSON. Raises UsageError for another signature.
    """
    where = f"tool {function.__name__}"
    described = _described(inspect.getdoc(function) or "")
    properties, required = {}, []
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UsageError("parameters must have names", where=where, got=str(parameter))
        schema = _schema(hints.get(parameter.name), f"{where}: {parameter.name}")
        text = described.get(parameter.name)
        properties[parameter.name] = {**schema, "description": text} if text else schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return Tool(
        function.__name__,
        described[""],
        {"type": "object", "properties": properties, "required": required},
        lambda arguments: _call(function, arguments),
    )


def _module(name: str) -> types.ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # Whatever the module's own code raises.
        raise UsageError(f"cannot be imported ({error})", where=f"--tool {name}") from error


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    try:
        result = function(**arguments)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except Exception as error:  # Whatever the user's function raises.
        what = f"{type(error).__name__}: {error}"
        raise ToolError(what, where=function.__name__) from error


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    if origin is dict:
        return {"type": "object"}
    if origin in (Union, types.UnionType):
        kinds = [{"type": "null"} if a is type(None) else _schema(a, where) for a in arguments]
        return {"anyOf": kinds}
    expected = "str, int, float, bool, list, dict, Literal or a union of them"
    raise UsageError("the parameter has no usable type", where=where, expected=expected, got=hint)


def _described(doc: str) -> dict[str, str]:
    """The first paragraph under "", and what "Args:" says of each parameter."""
    found = {"": " ".join(doc.partition("\n\n")[0].split())}
    _, _, rest = doc.partition("Args:\n")
    name = ""
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        if entry := re.match(r"\s+(\w+)(?: \([^)]*\))?:\s+(.*)", line):
            name = entry[1]
            found[name] = entry[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
