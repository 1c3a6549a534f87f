"""What each format's parser makes of replies, whole, cut off, malformed and cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.parsers.registry import reply_format
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer
from tests.support.replies import (
    MARKERS,
    Reply,
    events_of,
    made_format,
    parsed,
    steps_of,
    vocabulary,
)

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "deep": {"type": "object"},
                },
                "required": ["city"],
            },
        },
    }
]
ARGUMENTS = {"city": 'Ro"me\n<b> é', "days": 3, "deep": {"a": [1, "}"]}}
BODY = json.dumps(ARGUMENTS, ensure_ascii=False)
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "f", "arguments": {BODY}}}\n</tool_call>',
    "qwen_xml": '<tool_call>\n<function=f>\n<parameter=city>\nRo"me\n<b> é\n</parameter>\n'
    "<parameter=days>\n3\n</parameter>\n"
    '<parameter=deep>\n{"a": [1, "}"]}\n</parameter>\n</function>\n</tool_call>',
    "glm": '<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Ro"me\n<b> é</arg_value>\n'
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
    '<arg_key>deep</arg_key>\n<arg_value>{"a": [1, "}"]}</arg_value>\n</tool_call>',
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    f"<|tool_call_argument_begin|>{BODY}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"  # noqa: RUF001
    f"{BODY}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
    "minimax": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Ro"me\n<b> é'
    '</parameter>\n<parameter name="days">3</parameter>\n'
    '<parameter name="deep">{"a": [1, "}"]}</parameter>\n</invoke>\n</minimax:tool_call>',
    "dsml": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'  # noqa: RUF001
    '<｜DSML｜parameter name="city" string="true">Ro"me\n<b> é</｜DSML｜parameter>\n'  # noqa: RUF001
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'  # noqa: RUF001
    '<｜DSML｜parameter name="deep" string="false">{"a": [1, "}"]}</｜DSML｜parameter>\n'  # noqa: RUF001
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",  # noqa: RUF001
    "gemma": '<|tool_call>call:f{city:<|"|>Ro"me\n<b> é<|"|>,days:3,deep:{a:[1,<|"|>}<|"|>]}}'
    "<tool_call|>",
}
FORMATS = sorted(CALLS)
# The markers around reasoning, the opening one up to its text.
THINK = dict.fromkeys(("plain", *FORMATS), ("<think>\n", "</think>")) | {
    "gemma": ("<|channel>thought\n", "<channel|>")
}


def whole(name: str) -> str:
    """A reply with all parts and two calls."""
    opening, closing = THINK[name]
    thought = f"{opening}Hm, 2 < 3.\n\nYes\n{closing}"
    return f"{thought}\n\nI look <it> up.\n\n{CALLS[name]}\n{CALLS[name]}"


@pytest.fixture(params=[True, False], ids=["tokens", "text"])
def as_tokens(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def check_whole(got: Reply) -> None:
    assert got.reasoning == "Hm, 2 < 3.\n\nYes"
    assert got.content == "I look <it> up."
    assert [name for name, _ in got.calls] == ["f", "f"]
    assert [json.loads(arguments) for _, arguments in got.calls] == [ARGUMENTS, ARGUMENTS]


@pytest.mark.parametrize("name", FORMATS)
def test_reasoning_content_and_calls(tmp_path: Path, name: str, as_tokens: bool) -> None:
    tokenizer, reply = made_format(tmp_path, name, as_tokens=as_tokens)
    check_whole(events_of(whole(name), tokenizer, reply, tools=TOOLS))


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_split_of_the_text_gives_the_same(tmp_path: Path, name: str, data: Any) -> None:
    """The reply as mere text, cut anywhere."""
    _, reply = made_format(tmp_path, name, as_tokens=False)
    text = whole(name)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=40)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    check_whole(parsed(reply, [(0, piece) for piece in pieces], tools=TOOLS))


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_tokenisation_gives_the_same(tmp_path: Path, name: str, data: Any) -> None:
    """Markers stay tokens; the text between is cut into any other tokens, and text may be late."""
    tokenizer, reply = made_format(tmp_path, name)
    ids: list[int] = []
    for id, start, stop, text in _spans(tokenizer, whole(name)):
        cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
        for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
            ids += tokenizer.encode(text[a:b])
        ids += [id] if stop > start else []
    steps, late = [], ""
    for id, piece in steps_of(tokenizer, ids):
        kept = data.draw(st.integers(0, 3))
        late += piece
        shown = late[: max(0, len(late) - kept)]
        late = late[len(shown) :]
        steps.append((id, shown))
    check_whole(parsed(reply, [*steps, (0, late)], tools=TOOLS))


def _spans(tokenizer: Any, text: str) -> list[tuple[int, int, int, str]]:
    done, spans = 0, []
    for id, start, stop in tokenizer.markup_spans(text):
        spans.append((id, start, stop, text[done:start]))
        done = stop
    return [*spans, (0, 0, 0, text[done:])]


@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_may_break_off_anywhere(tmp_path: Path, name: str) -> None:
    """Every call that began ends, and nothing is told that was not said."""
    _, reply = made_format(tmp_path, name, as_tokens=False)
    text = whole(name)
    for length in range(0, len(text), 3):
        got = parsed(reply, [(0, text[:length])], tools=TOOLS)
        for told in (got.reasoning, got.content):
            said = iter(text)
            assert all(char in said for char in told)
        assert len(got.calls) <= 2


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(alphabet='<>/|{}"\\:,.name_toolcf=\n 1é', max_size=60))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_text_without_calls_is_content(tmp_path: Path, name: str, text: str) -> None:
    _, reply = made_format(tmp_path, name)
    assert parsed(reply, [(0, text)]) == Reply(content=text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>\n{"name": f}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", '),
        ("hermes", "<tool_call></tool_call>"),
        ("qwen_xml", "<tool_call>\nf(1)\n</tool_call>"),
        ("qwen_xml", "<tool_call>\n<function=f"),
        ("minimax", "<minimax:tool_call>\nf(1)\n</minimax:tool_call>"),
        ("dsml", "<｜DSML｜tool_calls>\nf(1)\n</｜DSML｜tool_calls>"),  # noqa: RUF001
        ("glm", "<tool_call>\n</tool_call>"),
        ("gemma", "<|tool_call>call:<tool_call|>"),
        ("gemma", "<|tool_call>call:f(1)"),
        ("gemma", "<|tool_call> {"),
        ("kimi", "<|tool_calls_section_begin|>f<|tool_calls_section_end|>"),
        ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_end|>"),
        ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>x"),  # noqa: RUF001
    ],
)
def test_a_malformed_call_is_content(tmp_path: Path, name: str, text: str, as_tokens: bool) -> None:
    tokenizer, reply = made_format(tmp_path, name, as_tokens=as_tokens)
    assert events_of(text, tokenizer, reply) == Reply(content=text)


@pytest.mark.parametrize("name", FORMATS)
def test_where_there_are_no_tools_a_call_is_content(
    tmp_path: Path, name: str, as_tokens: bool
) -> None:
    """A client may keep to a notation of its own in the system prompt."""
    tokenizer, reply = made_format(tmp_path, name, as_tokens=as_tokens)
    opening, closing = THINK[name]
    text = f"{opening}Hm{closing}I look.\n{CALLS[name]}"
    steps = steps_of(tokenizer, tokenizer.encode(text))
    got, parser = Reply(), reply.parser(calls=False)
    for event in [e for id, piece in steps for e in parser.push(id, piece)] + parser.finish():
        got.add(event)
    assert got == Reply("Hm", f"I look.\n{CALLS[name]}")


def test_a_marker_inside_a_json_string_is_text(tmp_path: Path, as_tokens: bool) -> None:
    tokenizer, reply = made_format(tmp_path, "hermes", as_tokens=as_tokens)
    call = '{"name": "f", "arguments": {"x": "</tool_call>"}}'
    got = events_of(f"<tool_call>\n{call}\n</tool_call>", tokenizer, reply)
    assert got.calls == [("f", '{"x": "</tool_call>"}')]


def test_letters_that_spell_a_marker_are_text(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "hermes")
    steps = steps_of(tokenizer, tokenizer.encode_plain("<tool_call>{}</tool_call>"))
    assert parsed(reply, steps).content == "<tool_call>{}</tool_call>"


@pytest.mark.parametrize(
    "call",
    [
        '{"arguments": {"a": 1}, "name": "f"}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"name": "f", "parameters": {"a": 1}}',
    ],
)
def test_hermes_reads_other_orders(tmp_path: Path, call: str) -> None:
    tokenizer, reply = made_format(tmp_path, "hermes")
    got = events_of(f"<tool_call>{call}</tool_call>", tokenizer, reply)
    assert got.calls == [("f", '{"a": 1}')]


def test_arguments_stream(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "hermes")
    parser = reply.parser()
    text = '<tool_call>\n{"name": "f", "arguments": {"a": "Rom'
    told = [e for id, t in steps_of(tokenizer, tokenizer.encode(text)) for e in parser.push(id, t)]
    assert "".join(getattr(event, "fragment", "") for event in told) == '{"a": "Rom'


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("3", {"type": "integer"}, "3"),
        ("3", {"type": "string"}, '"3"'),
        ("3", {}, "3"),
        ("x y", {}, '"x y"'),
        ("True", {"type": "boolean"}, "true"),
        ("null", {"type": ["string", "null"]}, "null"),
        ("nil", {"anyOf": [{"type": "string"}, {"type": "null"}]}, '"nil"'),
        ("NaN", {"type": "number"}, '"NaN"'),
        ("[1, 2]", {"type": "array"}, "[1, 2]"),
        ("\n\nx\n\n", {"type": "string"}, '"\\n\\nx\\n\\n"'),
    ],
)
def test_parameters_are_typed_by_the_schema(
    tmp_path: Path, value: str, schema: dict[str, Any], expected: str
) -> None:
    tokenizer, reply = made_format(tmp_path, "qwen_xml")
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n"
    got = events_of(text + "</tool_call>", tokenizer, reply, tools=[tool])
    assert got.calls == [("f", f'{{"a": {expected}}}')]


def test_a_call_without_parameters(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "qwen_xml")
    text = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    assert events_of(text, tokenizer, reply).calls == [("f", "{}")]


def test_deepseek_v3_fences_its_json(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "deepseek")
    begin, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"  # noqa: RUF001
    call = f'{begin}function{sep}f\n```json\n{{"a": 1}}\n```{end}'
    text = f"<｜tool▁calls▁begin｜>{call}\n{call}<｜tool▁calls▁end｜>"  # noqa: RUF001
    got = events_of(text, tokenizer, reply)
    assert got.calls == [("f", '{"a": 1}')] * 2
    assert got.content == ""


@pytest.mark.parametrize(
    ("stated", "value", "expected"),
    [
        ("true", "3", '"3"'),
        ("true", "</b>\n", '"</b>\\n"'),
        ("false", "3", "3"),
        ("false", '{"b": null}', '{"b": null}'),
        ("false", "no JSON", '"no JSON"'),
    ],
)
def test_dsml_says_what_is_a_string(tmp_path: Path, stated: str, value: str, expected: str) -> None:
    """Whatever the schema says."""
    tokenizer, reply = made_format(tmp_path, "dsml")
    mark = "｜DSML｜"  # noqa: RUF001
    parameter = f'<{mark}parameter name="a" string="{stated}">{value}</{mark}parameter>'
    call = f'<{mark}invoke name="f">\n{parameter}\n</{mark}invoke>'
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}]
    text = f"<{mark}tool_calls>\n{call}\n</{mark}tool_calls>"
    assert events_of(text, tokenizer, reply, tools=tools).calls == [("f", f'{{"a": {expected}}}')]


def test_dsml_of_v32_has_another_section(tmp_path: Path) -> None:
    mark = "｜DSML｜"  # noqa: RUF001
    template = f"{{# <{mark}function_calls> #}}"
    tokenizer = Tokenizer(vocabulary(tmp_path, MARKERS["dsml"], template))
    reply = reply_format(tokenizer, ChatTemplate(tmp_path))
    text = CALLS["dsml"].replace("tool_calls", "function_calls")
    got = events_of(text, tokenizer, reply, tools=TOOLS)
    assert [json.loads(arguments) for _, arguments in got.calls] == [ARGUMENTS]


def test_kimi_keeps_the_models_id(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "kimi")
    assert events_of(CALLS["kimi"], tokenizer, reply).ids == ["functions.f:0"]


HARMONY = (
    "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant"
    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
)


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
    ],
)
def test_harmony(tmp_path: Path, header: str, as_tokens: bool) -> None:
    tokenizer, reply = made_format(tmp_path, "harmony", as_tokens=as_tokens)
    got = events_of(f"{HARMONY}{header}{BODY}<|call|>", tokenizer, reply)
    assert (got.reasoning, got.content) == ("Hm.\n", "I look.")
    assert got.calls == [("f", BODY)]


@given(data=st.data())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_split_of_harmony(tmp_path: Path, data: Any) -> None:
    _, reply = made_format(tmp_path, "harmony", as_tokens=False)
    text = f"{HARMONY}<|channel|>commentary to=functions.f <|constrain|>json<|message|>{BODY}"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=40)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    got = parsed(reply, [(0, piece) for piece in pieces])
    assert got == Reply("Hm.\n", "I look.", [("f", BODY)], [None], 1)


def test_a_stop_token_need_not_show_its_text(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "harmony")
    text = f"<|channel|>commentary to=functions.f<|message|>{BODY}"
    steps = steps_of(tokenizer, tokenizer.encode(text))
    call = tokenizer.token_id("<|call|>")
    assert call is not None
    assert parsed(reply, [*steps, (call, "")]).calls == [("f", BODY)]


@pytest.mark.parametrize("name", ["plain", *FORMATS])
def test_a_prompt_may_open_the_reasoning(tmp_path: Path, name: str) -> None:
    tokenizer, reply = made_format(tmp_path, name)
    opening, closing = THINK[name]
    begun = opening.partition(">")[2].lstrip("\n")
    got = events_of(f"{begun}Hm\n{closing}\n\nYes ", tokenizer, reply, opens_reasoning=True)
    assert got == Reply("Hm", "Yes ")
    assert (reply.think_start, reply.think_end) == tuple(
        tokenizer.token_id(marker) for marker in MARKERS[name][:2]
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{}", {}),
        ("{ a : 1 , b:-2.5e3,}", {"a": 1, "b": -2500.0}),
        ("{a:True,b:None,c:false}", {"a": True, "b": None, "c": False}),
        ("{a:Rome by night}", {"a": "Rome by night"}),
        ('{"a":"x\\"}\\n","b":[]}', {"a": 'x"}\n', "b": []}),
        ('{<|"|>a<|"|>:<|"|>{}]"\\<|"|>}', {"a": '{}]"\\'}),
        ("{a:[1,[2],{b:{}},]}", {"a": [1, [2], {"b": {}}]}),
        ("{a:[1,{b:2", {"a": [1, {"b": 2}]}),
        ('{a:"x', {"a": "x"}),
        ("{a:", {"a": None}),
    ],
)
def test_gemma_writes_bare_keys_and_words(
    tmp_path: Path, body: str, expected: dict[str, Any], as_tokens: bool
) -> None:
    """The last three lack their brackets: the closing marker ends the call nevertheless."""
    tokenizer, reply = made_format(tmp_path, "gemma", as_tokens=as_tokens)
    got = events_of(f"<|tool_call>call:f{body}<tool_call|> Yes", tokenizer, reply)
    assert [(name, json.loads(arguments)) for name, arguments in got.calls] == [("f", expected)]
    assert got.content == "Yes"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex("[a-z_]{1,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


def _in_gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, list):
        return f"[{','.join(map(_in_gemma, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_gemma(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)


@given(value=_VALUES, data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_value_comes_out_of_gemma_as_it_went_in(tmp_path: Path, value: Any, data: Any) -> None:
    _, reply = made_format(tmp_path, "gemma", as_tokens=False)
    text = f"<|tool_call>call:f{_in_gemma({'a': value})}<tool_call|>"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=20)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    got = parsed(reply, [(0, piece) for piece in pieces])
    assert [json.loads(arguments) for _, arguments in got.calls] == [{"a": value}]


def test_another_channel_of_gemma_keeps_its_name(tmp_path: Path, as_tokens: bool) -> None:
    tokenizer, reply = made_format(tmp_path, "gemma", as_tokens=as_tokens)
    got = events_of("<|channel>note\nHm<channel|>Yes", tokenizer, reply)
    assert got == Reply("note\nHm", "Yes")
    assert events_of("<|channel>thought\n<channel|>Yes", tokenizer, reply) == Reply("", "Yes")
