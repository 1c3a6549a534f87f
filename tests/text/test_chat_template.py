import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flashmoe.demo import demo_model_path
from flashmoe.errors import PackError, UsageError
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer
from tests.support.demo import demo_checkpoint, evaluation_files

HELLO = [{"role": "user", "content": "Hello"}]


def template(directory: Path, source: str, **config: Any) -> ChatTemplate:
    (directory / "chat_template.jinja").write_text(source)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTemplate(directory)


def test_demo_model_renders_chatml() -> None:
    assert ChatTemplate(demo_model_path()).render(HELLO) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_generation_prompt_can_be_left_out() -> None:
    text = ChatTemplate(demo_model_path()).render(HELLO, add_generation_prompt=False)
    assert text.endswith("Hello<|im_end|>\n")


def test_tools_are_written_without_ascii_escapes() -> None:
    tool = {"type": "function", "function": {"name": "café", "parameters": {}}}
    text = ChatTemplate(demo_model_path()).render(HELLO, tools=[tool])
    assert '<tools>\n{"type": "function", "function": {"name": "café", "parameters": {}}}' in text


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
def test_tool_call_arguments_may_be_json_text(arguments: object) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    text = ChatTemplate(demo_model_path()).render(turns)
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in text


def test_the_callers_messages_are_not_changed() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    ChatTemplate(demo_model_path()).render([{"role": "assistant", "tool_calls": [call]}])
    assert call == {"function": {"name": "f", "arguments": "{}"}}


# In the manner of gpt-oss: messages between control tokens, thoughts in a channel of their own that
# is left out of the history, the end of a finished answer written as that of any message.
HARMONY = """{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') -}}
{{- '\\nCurrent date: ' + strftime_now('%Y') + '<|end|>' -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' and message.tool_calls -%}
{%- set call = message.tool_calls[0].function -%}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' -}}
{{- call.arguments|tojson + '<|call|>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' -}}
{%- else -%}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- else -%}<|return|>{%- endif -%}"""


def test_harmony_templates_render(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    turns: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    text = template(tmp_path, HARMONY).render(turns)
    assert text == (
        f"<|start|>system<|message|>Reasoning: medium\nCurrent date: {datetime.now():%Y}<|end|>"
        "<|start|>user<|message|>Hello<|end|>"
        '<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{"zone": "UTC"}'
        "<|call|><|start|>assistant"
    )


def test_published_extras_are_there(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{{ eos_token }}|{{ strftime_now('%Y') }}|"
        "{%- for m in messages %}{%- if loop.index > 1 %}{%- break %}{%- endif %}"
        "{{ m.role }}{%- endfor %}"
        "|{{ enable_thinking is defined }}"
    )
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    made = template(tmp_path, source, **config)
    year = datetime.now().year
    assert made.render([*HELLO, *HELLO]) == f"<s></s>|{year}|user|False"
    assert made.render(HELLO, enable_thinking=False).endswith("|True")


def test_blocks_are_trimmed(tmp_path: Path) -> None:
    assert template(tmp_path, "  {% if true %}\nx\n  {% endif %}\ny").render(HELLO) == "x\ny"


def test_the_file_wins_over_the_config(tmp_path: Path) -> None:
    assert template(tmp_path, "file", chat_template="config").render(HELLO) == "file"


def test_named_templates_are_chosen_by_tools(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with {{ tools | length }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    made = ChatTemplate(tmp_path)
    assert made.render(HELLO) == "plain"
    assert made.render(HELLO, tools=[{"name": "f"}]) == "with 1"


def test_no_template_is_a_usage_error_when_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no chat template.*--raw"):
        ChatTemplate(tmp_path).render(HELLO)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 'a' + messages[0].missing }}", "concatenate|missing"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(1000000) %}{% endfor %}", "too big"),
    ],
)
def test_a_refusal_names_the_template(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        template(tmp_path, source).render(HELLO)
    assert "chat_template.jinja: the chat template refuses these messages" in str(caught.value)


def test_a_template_that_does_not_compile_is_a_pack_error(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"chat_template\.jinja: chat template does not compile"):
        template(tmp_path, "{% if %}")


@pytest.mark.parametrize("value", [7, [7], [{"name": "default"}], {"default": "x"}])
def test_a_config_template_of_the_wrong_type_is_a_pack_error(tmp_path: Path, value: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(PackError, match=r"tokenizer_config\.json: chat.template is n"):
        ChatTemplate(tmp_path)


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({}, r"messages\[0\]"),
        ({"role": 3}, r"messages\[0\]"),
        ("hello", r"messages\[0\]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: arguments are not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]},
            r"messages\[0\]\.tool_calls\[0\]\.arguments: .*expected an object, got list",
        ),
        ({"role": "assistant", "tool_calls": [1]}, r"messages\[0\]\.tool_calls\[0\]"),
        ({"role": "assistant", "tool_calls": 1}, r"messages\[0\]\.tool_calls"),
    ],
)
def test_bad_messages_are_named(tmp_path: Path, message: Any, where: str) -> None:
    source = "{% for m in messages %}{{ m.role }}{% for c in m.tool_calls or [] %}"
    source += "{% set f = c.function or c %}{% for k, v in f.arguments | items %}{{ k }}"
    source += "{% endfor %}{% endfor %}{% endfor %}"
    with pytest.raises(UsageError, match=where):
        template(tmp_path, source).render([message])


def test_a_broken_call_is_kept_where_the_template_takes_text() -> None:
    call = {"function": {"name": "f", "arguments": "{broken"}}
    text = ChatTemplate(demo_model_path()).render([{"role": "assistant", "tool_calls": [call]}])
    assert '"arguments": "{broken"' in text


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
@pytest.mark.parametrize("paste", ["{{ ' ' + a }}", "{{ a }}"])
def test_a_template_that_pastes_arguments_gets_text(
    tmp_path: Path, arguments: object, paste: str
) -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    source += "{% set a = c.function.arguments %}" + paste + "{% endfor %}{% endfor %}"
    call = {"function": {"name": "f", "arguments": arguments}}
    turns: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": [call]}]
    assert template(tmp_path, source).render(turns).strip() == '{"city": "Rome"}'


def test_no_messages_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there are no messages"):
        ChatTemplate(demo_model_path()).render([])


def test_a_tool_prompt_has_the_length_of_the_reference_run() -> None:
    """The first case of the tool-call set: 301 tokens when transformers rendered it."""
    tools = [
        tool("send_message", "Send a message to a person.", to="string", text="string"),
        tool("buy", "Order items from the shop.", item="string", count="integer", gift="boolean"),
        tool("search", "Search the library.", query="string", limit="integer"),
    ]
    turns = [{"role": "user", "content": "Send Zoe this message: Has Perry seen her?"}]
    text = ChatTemplate(demo_model_path()).render(turns, tools=tools)
    assert len(Tokenizer(demo_model_path()).encode(text)) == 301


def tool(name: str, description: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


@pytest.mark.checkpoint
def test_all_prompts_of_the_reference_run_have_its_token_counts() -> None:
    lines = (evaluation_files() / "tool_calls.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    reference = json.loads((demo_checkpoint() / "reference-greedy.json").read_text())
    made, tokenizer = ChatTemplate(demo_model_path()), Tokenizer(demo_model_path())
    prompts = [made.render(case["messages"], tools=case["tools"]) for case in cases]
    assert [len(tokenizer.encode(p)) for p in prompts] == [r["prompt_tokens"] for r in reference]
    assert len(prompts) == 100
