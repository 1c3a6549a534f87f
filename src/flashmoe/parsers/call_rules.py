"""The syntax of calls as grammars: what a model may write once it calls a tool.

Each function gives the rules (llguidance's Lark) of what follows a format's opening marker, up to
and with the end of its calls. Arguments follow the tools' schemas, in the schemas' order. `several`
allows a section to hold more than one call; formats that open each call anew ignore it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flashmoe.parsers import glm, harmony, hermes
from flashmoe.parsers.base import Tools
from flashmoe.parsers.json_text import dumped
from flashmoe.parsers.machine import Markers
from flashmoe.parsers.schema import ANY_OBJECT, Schema, function_of, kinds, properties, schemas
from flashmoe.parsers.sections import Section
from flashmoe.parsers.xml_calls import Tags

# Between JSON's parts. Without a bound a small model can write blanks for ever.
_BLANK = r"[ \n]{0,8}"
_ANY_TEXT = r"/(.|\n)*/"


def json_rule(schema: Any, *, lenient: bool = False) -> str:
    """Lark of JSON text that follows `schema`; lenient: what cannot be enforced is ignored."""
    options = {"whitespace_pattern": _BLANK, "lenient": lenient}
    if isinstance(schema, Mapping):
        schema = {"x-guidance": options, **schema}
    return f"%json {dumped(schema)}"


def hermes_rules(markers: Markers, tools: Tools) -> str:
    """One call; the next has a marker of its own."""
    alternatives, rules = [], []
    for number, (name, schema, lenient) in enumerate(_functions(tools)):
        head = dumped(f'\n{{"name": {dumped(name)}, "arguments": ')
        alternatives.append(f'{head} args{number} "}}\\n"')
        rules.append(f"args{number}: {json_rule(schema, lenient=lenient)}")
    return _joined(f"start: ({_any(alternatives)}) {markers.lark(hermes.CLOSE)}", rules)


def section_rules(
    markers: Markers, tools: Tools, section: Section, call: tuple[str, str, str], several: bool
) -> str:
    """Calls of a section; call: Lark before the arguments ("NAME": the name), after, between."""
    before, after, between = call
    begin, end = markers.lark(section.call), markers.lark(section.call_end)
    split = markers.lark(section.split)
    alternatives, rules = [], []
    for number, (name, schema, lenient) in enumerate(_functions(tools)):
        head = before.replace("NAME", inner_lark(name)).replace("SPLIT", split)
        alternatives.append(f"{begin} {head} args{number} {after} {end}")
        rules.append(f"args{number}: {json_rule(schema, lenient=lenient)}")
    more = f"({between} call)*" if several else ""
    start = f"start: call {more} {markers.lark(section.close)}"
    return _joined(start, [f"call: {_any(alternatives)}", *rules])


def xml_rules(markers: Markers, tools: Tools, tags: Tags, several: bool) -> str:
    """Calls as tags; a string runs up to its closing tag."""
    close = '">' if tags.quoted else ">"
    alternatives, rules = [], []
    for number, (name, schema, _) in enumerate(_functions(tools)):
        head = dumped(f"{tags.function}{name}{close}\n")
        parts = []
        for place, (key, kind, needed) in enumerate(_parameters(schema)):
            rule = f"p{number}_{place}"
            stated = _stated(kind) if tags.typed else ""
            opening = f"{tags.parameter}{key}{stated or close}" + ("\n" if tags.newlines else "")
            ending = ("\n" if tags.newlines else "") + tags.parameter_end + "\n"
            rules.append(_value_rule(rule, opening, kind, ending))
            parts.append(rule if needed else f"{rule}?")
        alternatives.append(f"{head} {' '.join(parts)} {dumped(tags.function_end)}")
    more = '("\\n" call)*' if several else ""
    start = f'start: "\\n" call {more} "\\n" {markers.lark(tags.close)}'
    return _joined(start, [f"call: {_any(alternatives)}", *rules])


def glm_rules(markers: Markers, tools: Tools, newlines: bool) -> str:
    """One call; the next has a marker of its own. newlines: GLM-4.5 and 4.6 write them."""
    line = '"\\n"' if newlines else ""
    key, key_end = markers.lark(glm.KEY), markers.lark(glm.KEY_END)
    value, value_end = markers.lark(glm.VALUE), markers.lark(glm.VALUE_END)
    alternatives, rules = [], []
    for number, (name, schema, _) in enumerate(_functions(tools)):
        parts = []
        for place, (parameter, kind, needed) in enumerate(_parameters(schema)):
            rule = f"p{number}_{place}"
            names = f"{key} {dumped(parameter)} {key_end} {line} {value}"
            rules.append(_glm_value(rule, names, kind, value_end, line))
            parts.append(rule if needed else f"{rule}?")
        alternatives.append(f"{dumped(name)} {line} {' '.join(parts)}")
    return _joined(f"start: ({_any(alternatives)}) {markers.lark(glm.CLOSE)}", rules)


def _glm_value(rule: str, names: str, schema: Schema, end: str, line: str) -> str:
    if end.startswith("<") or not _is_text(schema) or "enum" in schema:
        return f"{rule}: {names} v{rule} {end} {line}\nv{rule}: {_text_or_json(schema)}"
    return f"{rule}: {names} v{rule} {line}\nv{rule}[suffix={end}]: {_ANY_TEXT}"


def harmony_rules(markers: Markers, name: str, tools: Tools) -> str:
    """The arguments of one function, after its header."""
    found = {known: (schema, lenient) for known, schema, lenient in _functions(tools)}
    schema, lenient = found.get(name, (ANY_OBJECT, False))
    rule = f"args: {json_rule(schema, lenient=lenient)}"
    return _joined(f"start: args {markers.lark(harmony.CALL)}", [rule])


def inner_lark(text: str) -> str:
    """`text` as it stands inside a Lark string."""
    return dumped(text)[1:-1]


def _functions(tools: Tools) -> Iterable[tuple[str, Schema, bool]]:
    """(name, schema, whether the schema is a guide only) of each tool."""
    strict = [bool(function_of(tool).get("strict")) for tool in tools]
    pairs = schemas(tools).items()
    return [(name, schema, not s) for (name, schema), s in zip(pairs, strict, strict=True)]


def _parameters(schema: Schema) -> Iterable[tuple[str, Schema, bool]]:
    """(name, schema, required) of each parameter."""
    required = schema.get("required") or ()
    return [(key, kind, key in required) for key, kind in properties(schema).items()]


def _value_rule(rule: str, opening: str, schema: Schema, ending: str) -> str:
    if _is_text(schema) and "enum" not in schema:
        return f"{rule}: {dumped(opening)} v{rule}\nv{rule}[suffix={dumped(ending)}]: {_ANY_TEXT}"
    return f"{rule}: {dumped(opening)} v{rule} {dumped(ending)}\nv{rule}: {_text_or_json(schema)}"


def _stated(schema: Schema) -> str:
    """The end of a parameter's tag where that says whether the value is a string."""
    return f'" string="{"true" if _is_text(schema) else "false"}">'


def _text_or_json(schema: Schema) -> str:
    if not _is_text(schema):
        return json_rule(schema, lenient=True)
    options = [dumped(option) for option in schema.get("enum", ()) if isinstance(option, str)]
    return _any(options) if options else _ANY_TEXT


def _is_text(schema: Schema) -> bool:
    types = kinds(schema)
    return not types or "string" in types


def _any(alternatives: Iterable[str]) -> str:
    return " | ".join(alternatives)


def _joined(start: str, rules: Iterable[str]) -> str:
    return "\n".join([start, *rules]) + "\n"
