"""The clients that people use, against a real server process on the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server_process import served

openai = pytest.importorskip("openai", reason="the client is not installed (extra 'dev')")
anthropic = pytest.importorskip("anthropic", reason="the client is not installed (extra 'dev')")
ollama = pytest.importorskip("ollama", reason="the client is not installed (extra 'dev')")

KEY = "a-key"
NAME = "flashmoe-demo"
QUESTION = [{"role": "user", "content": "What is the capital of Italy?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server process with a key, started by the command."""
    with served("--api-key", KEY, "--ctx", "1024") as address:
        yield address


@pytest.fixture
def gpt(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY) as client:
        yield client


@pytest.fixture
def claude(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key=KEY) as client:
        yield client


@pytest.fixture
def llama(url: str) -> Iterator[Any]:
    with ollama.Client(url, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_openai_chats_and_streams(gpt: Any) -> None:
    whole = gpt.chat.completions.create(model=NAME, messages=QUESTION)
    assert "Rome" in whole.choices[0].message.content
    options = {"include_usage": True}
    stream = gpt.chat.completions.create(
        model=NAME, messages=QUESTION, stream=True, stream_options=options
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_calls_tools_over_two_turns(gpt: Any) -> None:
    ask = gpt.chat.completions
    first = ask.create(model=NAME, messages=WEATHER, tools=TOOLS, tool_choice="required")
    message = first.choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments).keys() == {"city"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    turns = [*WEATHER, message.model_dump(exclude_none=True), result]
    second = ask.create(model=NAME, messages=turns, tools=TOOLS, max_tokens=30)
    assert second.choices[0].finish_reason in ("stop", "length", "tool_calls")
    with ask.stream(model=NAME, messages=WEATHER, tools=TOOLS, tool_choice="required") as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert streamed.tool_calls[0].function.arguments == message.tool_calls[0].function.arguments


def test_openai_gets_json_of_a_schema(gpt: Any) -> None:
    schema = {"name": "place", "schema": PARAMETERS, "strict": True}
    format = {"type": "json_schema", "json_schema": schema}
    found = gpt.chat.completions.create(model=NAME, messages=QUESTION, response_format=format)
    assert json.loads(found.choices[0].message.content).keys() == {"city"}


def test_openai_gets_log_probabilities(gpt: Any) -> None:
    found = gpt.chat.completions.create(
        model=NAME, messages=QUESTION, logprobs=True, top_logprobs=3
    )
    entries = found.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == found.choices[0].message.content
    assert all(entry.top_logprobs[0].logprob >= entry.logprob for entry in entries)


def test_openai_scores_a_prompt(gpt: Any) -> None:
    found = gpt.completions.create(
        model=NAME, prompt="Rome is the capital of Italy.", echo=True, max_tokens=0, logprobs=1
    )
    scores = found.choices[0].logprobs
    assert "".join(scores.tokens) == found.choices[0].text == "Rome is the capital of Italy."
    assert scores.token_logprobs[0] is None


def test_openai_responses(gpt: Any) -> None:
    assert "Rome" in gpt.responses.create(model=NAME, input=QUESTION).output_text
    tool = {"type": "function", "strict": True} | FUNCTION
    asked = {"model": NAME, "tools": [tool], "tool_choice": "required"}
    with gpt.responses.stream(input=WEATHER, **asked) as stream:
        call = stream.get_final_response().output[-1]
    assert json.loads(call.arguments).keys() == {"city"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    said = {k: getattr(call, k) for k in ("type", "call_id", "name", "arguments")}
    second = gpt.responses.create(
        model=NAME, input=[*WEATHER, said, result], tools=[tool], max_output_tokens=30
    )
    assert second.status in ("completed", "incomplete")


def test_openai_is_told_what_is_wrong(gpt: Any, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        gpt.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "word " * 2000}]
        )
    assert told.value.code == "context_length_exceeded"
    with (
        openai.OpenAI(base_url=url + "/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert [model.id for model in gpt.models.list()] == [NAME]


def test_anthropic_chats_and_streams(claude: Any) -> None:
    asked = {"model": NAME, "max_tokens": 50, "messages": QUESTION}
    whole = claude.messages.create(**asked)
    assert "Rome" in whole.content[0].text
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_text() == whole.content[0].text
    counted = claude.messages.count_tokens(model=NAME, messages=QUESTION)
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_anthropic_calls_tools_over_two_turns(claude: Any) -> None:
    tool = {"name": "get_weather", "description": "Weather", "input_schema": PARAMETERS}
    asked = {"model": NAME, "max_tokens": 60, "tools": [tool]}
    with claude.messages.stream(messages=WEATHER, tool_choice={"type": "any"}, **asked) as stream:
        first = stream.get_final_message()
    call = first.content[-1]
    assert (first.stop_reason, call.input.keys()) == ("tool_use", {"city"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    said = [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = claude.messages.create(messages=[*WEATHER, *said], **asked)
    assert second.type == "message"


def test_anthropic_gets_json_of_a_schema(claude: Any) -> None:
    format = {"format": {"type": "json_schema", "schema": PARAMETERS}}
    found = claude.messages.create(
        model=NAME, max_tokens=100, messages=QUESTION, extra_body={"output_config": format}
    )
    assert json.loads(found.content[0].text).keys() == {"city"}


def test_ollama_chats_and_streams(llama: Any) -> None:
    whole = llama.chat(NAME, messages=QUESTION).message.content
    assert "Rome" in whole
    streamed = [part.message.content for part in llama.chat(NAME, messages=QUESTION, stream=True)]
    assert "".join(streamed) == whole
    assert [model.model for model in llama.list().models] == [NAME]
    assert "tools" in llama.show(NAME).capabilities


def test_ollama_calls_tools_over_two_turns(llama: Any) -> None:
    first = llama.chat(NAME, messages=WEATHER, tools=TOOLS).message
    # The client leaves additionalProperties out of what it sends: more keys may come.
    assert first.tool_calls[0].function.arguments.keys() >= {"city"}
    result = {"role": "tool", "tool_name": "get_weather", "content": "sunny"}
    second = llama.chat(NAME, [*WEATHER, first, result], tools=TOOLS, options={"num_predict": 30})
    assert second.done


def test_ollama_gets_json_and_log_probabilities(llama: Any) -> None:
    found = llama.chat(NAME, messages=QUESTION, format=PARAMETERS).message.content
    assert json.loads(found).keys() == {"city"}
    scored = llama.chat(NAME, messages=QUESTION, logprobs=True, top_logprobs=2)
    assert "".join(entry.token for entry in scored.logprobs) == scored.message.content
