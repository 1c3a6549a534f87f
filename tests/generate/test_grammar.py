"""Masks: what they allow, driven token by token with texts and with random logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.demo import demo_model_path
from flashmoe.errors import UsageError
from flashmoe.generate.grammar import MAX_GRAMMAR_BYTES, Grammars, Thinking, ToolChoice
from flashmoe.generate.masks import Masks
from flashmoe.parsers.registry import reply_format
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer
from tests.support.replies import events_of, made_format, steps_of
from tests.support.replies import parsed as parsed_reply

pytest.importorskip("llguidance", reason="needs the 'serve' extra")

NO_THINKING = Thinking(allowed=False)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time_of")
]


def made(tokenizer: Tokenizer, reply: Any) -> Grammars:
    size = tokenizer.vocab_size + 64  # a vocabulary may be padded
    return Grammars(tokenizer, size, stop_ids=frozenset({2}), reply=reply)


@pytest.fixture(scope="module")
def demo() -> Grammars:
    tokenizer = Tokenizer(demo_model_path())
    return made(tokenizer, reply_format(tokenizer, ChatTemplate(demo_model_path())))


TOKENIZER = Tokenizer(demo_model_path())
CALL, CALL_END, THINK, THINK_END = 8186, 8187, 8190, 8191


def allowed(mask: Masks, size: int = 8192 + 64) -> frozenset[int]:
    logits = np.zeros(size, dtype=np.float32)
    if mask.active():
        mask.apply(logits)
    return frozenset(np.flatnonzero(np.isfinite(logits)).tolist())


def take(mask: Masks, *ids: int) -> None:
    for id in ids:
        assert id in allowed(mask), TOKENIZER.decode([id], skip_special=False)
        mask.accept(id)


def drawn(mask: Masks, tokenizer: Tokenizer, seed: int, most: int = 600) -> list[int]:
    """An answer of a model that knows nothing: the likeliest allowed of random logits."""
    random, ids = np.random.default_rng(seed), list[int]()
    while not mask.finished() and len(ids) < most:
        logits = random.standard_normal(tokenizer.vocab_size + 64).astype(np.float32)
        # Ends are likely, or strings would go on for ever.
        for text in ('"', "}", "</", '"}', "]", '<|"|>'):
            logits[tokenizer.encode(text)[0]] += 6
        if mask.active():
            mask.apply(logits)
        token = int(np.argmax(logits))
        mask.accept(token)
        if token == 2:
            break
        ids.append(token)
    return ids


def text_of(ids: list[int], tokenizer: Tokenizer = TOKENIZER) -> str:
    return tokenizer.decode(ids, skip_special=False)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_holds_whatever_the_model_wants(demo: Grammars, seed: int) -> None:
    answer = json.loads(
        text_of(drawn(demo.json_schema(SCHEMA, thinking=NO_THINKING), TOKENIZER, seed))
    )
    assert answer.keys() == {"a", "b"}
    assert isinstance(answer["a"], int)
    assert answer["b"] in ("x", "y")


def test_a_complete_answer_is_finished(demo: Grammars) -> None:
    mask = demo.json_schema(SCHEMA, thinking=NO_THINKING)
    take(mask, *TOKENIZER.encode('{"a": 12, "b": "x"}'))
    assert mask.finished()


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("regex", r"[0-9]{2}-[ab]+", "12-ab"),
        ("lark", 'start: "x" NAME\nNAME: /[a-z]+/', "xabc"),
        ("gbnf", 'root ::= "x" [a-z]+', "xabc"),
    ],
)
def test_other_grammars(demo: Grammars, kind: str, source: str, text: str) -> None:
    mask = getattr(demo, kind)(source, thinking=NO_THINKING)
    take(mask, *TOKENIZER.encode(text))
    assert 2 in allowed(mask)
    assert not allowed(mask) & set(TOKENIZER.encode("!"))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(a"),
        ("lark", "start: nothing"),
        ("lark", "begin"),
        ("gbnf", "root ::= nothing"),
        ("gbnf", "!"),
        ("json_schema", {"type": "nothing"}),
        ("json_schema", {"$ref": "http://example.com/schema"}),
        ("lark", "start: " + '"a" ' * MAX_GRAMMAR_BYTES),
    ],
)
def test_a_bad_grammar_is_a_usage_error(demo: Grammars, kind: str, source: Any) -> None:
    with pytest.raises(UsageError, match=r"gramma|schema"):
        getattr(demo, kind)(source)


def test_a_grammar_is_compiled_once(demo: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo.regex("abc+", thinking=NO_THINKING)
    monkeypatch.setattr("flashmoe.generate.grammar._compiled", None)
    second = demo.regex("abc+", thinking=NO_THINKING)
    take(first, *TOKENIZER.encode("abc"))
    take(second, *TOKENIZER.encode("abc"))


def test_a_regex_may_have_slashes(demo: Grammars) -> None:
    mask = demo.regex(r"a/\/b\\", thinking=NO_THINKING)
    for char in "a//b\\":
        take(mask, *TOKENIZER.encode(char))


# Reasoning.


def test_a_model_may_think_before_it_answers(demo: Grammars) -> None:
    mask = demo.json_object()
    take(mask, THINK)
    assert not mask.active()
    take(mask, *TOKENIZER.encode("no { JSON here"), THINK_END, *TOKENIZER.encode("\n"))
    assert THINK not in allowed(mask)
    take(mask, *TOKENIZER.encode('{"a": 1}'))
    assert mask.finished()


def test_a_prompt_may_open_the_reasoning(demo: Grammars) -> None:
    mask = demo.json_object(thinking=Thinking(opened=True))
    take(mask, *TOKENIZER.encode("well"), THINK_END, *TOKENIZER.encode("{}"))
    assert mask.finished()


def test_without_thinking_the_answer_comes_first(demo: Grammars) -> None:
    assert THINK not in allowed(demo.json_object(thinking=NO_THINKING))
    assert THINK in allowed(demo.json_object())


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_ends_the_reasoning(demo: Grammars, budget: int) -> None:
    mask = demo.free(thinking=Thinking(opened=True, budget=budget))
    assert mask is not None
    for _ in range(budget):
        take(mask, 90)
    assert allowed(mask) == {THINK_END}
    take(mask, THINK_END)
    assert not mask.active()


def test_no_budget_no_mask(demo: Grammars) -> None:
    assert demo.free(thinking=Thinking()) is None


# Calls.


@pytest.mark.parametrize("seed", range(5))
def test_a_required_call_is_valid(demo: Grammars, seed: int) -> None:
    mask = demo.tools(TOOLS, ToolChoice("required"), parallel=False, thinking=NO_THINKING)
    ids = drawn(mask, TOKENIZER, seed)
    assert ids[0] == CALL
    assert ids[-1] == CALL_END
    call = json.loads(text_of(ids[1:-1]))
    assert call["name"] in ("weather", "time_of")
    assert isinstance(call["arguments"]["days"], int)


def test_a_named_call_is_that_one(demo: Grammars) -> None:
    mask = demo.tools(TOOLS, ToolChoice("named", "time_of"), thinking=NO_THINKING)
    ids = drawn(mask, TOKENIZER, 1)
    assert json.loads(text_of(ids[1:-1]))["name"] == "time_of"
    assert mask.finished()


def test_auto_is_free_up_to_a_call(demo: Grammars) -> None:
    mask = demo.tools(TOOLS)
    take(mask, *TOKENIZER.encode("I look."))
    assert not mask.active()
    take(mask, CALL)
    text = '\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n'
    assert not allowed(mask) & {2, CALL_END, *TOKENIZER.encode("x")}
    take(mask, *TOKENIZER.encode(text), CALL_END)
    assert not mask.active()
    assert not mask.finished()
    take(mask, *TOKENIZER.encode("\n"), CALL)
    assert mask.active()


def test_one_call_where_several_are_not_wanted(demo: Grammars) -> None:
    mask = demo.tools(TOOLS, parallel=False)
    take(mask, CALL)
    mask_end = drawn(mask, TOKENIZER, 3)
    assert mask_end[-1] == CALL_END
    assert mask.finished()


def test_none_forbids_calls(demo: Grammars) -> None:
    assert CALL not in allowed(demo.tools(TOOLS, ToolChoice("none"), thinking=NO_THINKING))


def test_an_unknown_tool_cannot_be_named(demo: Grammars) -> None:
    with pytest.raises(UsageError, match="no such tool"):
        demo.tools(TOOLS, ToolChoice("named", "f"))


def test_a_format_without_calls(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "plain")
    with pytest.raises(UsageError, match="no tool calls"):
        made(tokenizer, reply).tools(TOOLS)


ARGUMENTS = '{"city": "Ro<me", "days": 2}'
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>',
    "qwen_xml": "<tool_call>\n<function=weather>\n<parameter=city>\nRo<me\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ro<me</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"  # noqa: RUF001
    f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
    "minimax": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Ro<me'
    '</parameter>\n<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "dsml": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'  # noqa: RUF001
    '<｜DSML｜parameter name="city" string="true">Ro<me</｜DSML｜parameter>\n'  # noqa: RUF001
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'  # noqa: RUF001
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",  # noqa: RUF001
    "gemma": '<|tool_call>call:weather{city:<|"|>Ro<me<|"|>,days:2}<tool_call|>',
    "harmony": "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary "
    f"to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
}


@pytest.mark.parametrize("name", sorted(CALLS))
@pytest.mark.parametrize("mode", ["auto", "required", "named"])
def test_a_models_own_call_is_allowed_and_parsed(tmp_path: Path, name: str, mode: Any) -> None:
    tokenizer, reply = made_format(tmp_path, name)
    choice = ToolChoice(mode, "weather" if mode == "named" else None)
    mask = made(tokenizer, reply).tools(TOOLS, choice, parallel=False, thinking=NO_THINKING)
    ids = tokenizer.encode(CALLS[name])
    for id in ids:
        assert id in allowed(mask, tokenizer.vocab_size + 64), tokenizer.decode([id])
        mask.accept(id)
    assert mask.finished()
    got = events_of(CALLS[name], tokenizer, reply, tools=TOOLS)
    assert [(call, json.loads(text)) for call, text in got.calls] == [
        ("weather", json.loads(ARGUMENTS))
    ]


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"harmony"}))
def test_markers_that_are_text_are_held_too(tmp_path: Path, name: str) -> None:
    tokenizer, reply = made_format(tmp_path, name, as_tokens=False)
    mask = made(tokenizer, reply).tools(TOOLS, parallel=False, thinking=NO_THINKING)
    for id in tokenizer.encode("Hm " + CALLS[name]):
        assert id in allowed(mask, tokenizer.vocab_size + 64), tokenizer.decode([id])
        mask.accept(id)
    assert mask.finished()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_number_must_be_one(tmp_path: Path, name: str) -> None:
    tokenizer, reply = made_format(tmp_path, name)
    mask = made(tokenizer, reply).tools(TOOLS, thinking=NO_THINKING)
    head, _, _ = CALLS[name].rpartition("2")
    for id in tokenizer.encode(head):
        mask.accept(id)
    names = {tokenizer.decode([id]) for id in allowed(mask, tokenizer.vocab_size + 64)}
    assert names & set("0123456789")
    assert not any(text.strip().isalpha() for text in names)


def test_harmony_constrains_after_the_header(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "harmony")
    mask = made(tokenizer, reply).tools(TOOLS)
    header = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    for id in tokenizer.encode(header):
        assert not mask.active()
        mask.accept(id)
    assert mask.active()
    assert tokenizer.encode("x")[0] not in allowed(mask, tokenizer.vocab_size + 64)


def test_harmony_answers_in_the_final_channel(tmp_path: Path) -> None:
    tokenizer, reply = made_format(tmp_path, "harmony")
    mask = made(tokenizer, reply).json_object()
    text = "<|channel|>analysis<|message|>x {<|end|><|start|>assistant<|channel|>final<|message|>{}"
    for id in tokenizer.encode(text):
        assert id in allowed(mask, tokenizer.vocab_size + 64)
        mask.accept(id)
    assert mask.finished() or allowed(mask, tokenizer.vocab_size + 64) == {2}


NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "size": {"enum": ["big", 3, None]},
        "at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        "tags": {"type": "array", "items": {"type": ["string", "boolean"]}},
        "rest": {},
        "no": {"type": "integer"},
    },
    "required": ["size", "at"],
}


@pytest.mark.parametrize("seed", range(4))
def test_what_gemma_may_write_is_json_of_the_schema(tmp_path: Path, seed: int) -> None:
    tokenizer, reply = made_format(tmp_path, "gemma")
    tool = {"name": "f", "parameters": NESTED}
    mask = made(tokenizer, reply).tools(
        [tool], ToolChoice("required"), parallel=False, thinking=NO_THINKING
    )
    ids = drawn(mask, tokenizer, seed)
    got = parsed_reply(reply, steps_of(tokenizer, ids), tools=[tool])
    ((name, text),) = got.calls
    arguments = json.loads(text)
    assert name == "f"
    assert arguments["size"] in ("big", 3, None)
    assert isinstance(arguments["at"]["x"], int | float)
    assert arguments.keys() <= NESTED["properties"].keys()
    assert all(isinstance(tag, str | bool) for tag in arguments.get("tags", ()))
