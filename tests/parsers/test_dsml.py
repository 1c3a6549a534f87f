"""DSML: parameters say what they are; V3.2 has another section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashmoe.parsers.registry import reply_format
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer
from tests.parsers.test_formats import ARGUMENTS, CALLS, TOOLS
from tests.support.replies import MARKERS, events_of, made_format, vocabulary


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
