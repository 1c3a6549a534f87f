"""Libraries that people put before a server, against a real server process on the demo model.

Each is skipped where it is not installed: their pins conflict, so that each needs an environment of
its own (docs/clients.md names the versions that were tried).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.support.server_process import served

pydantic = pytest.importorskip("pydantic", reason="the extra 'serve' is not installed")

# What these libraries do at import and at exit is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

KEY = "a-key"
NAME = "flashmoe-demo"
ITALY = "What is the capital of Italy?"
PARIS = "What is the weather in Paris?"


class Place(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    """A place, with no keys beside: a small model would go on with others."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str = pydantic.Field(max_length=20)


def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server process with a key, started by the command."""
    with served("--api-key", KEY, "--ctx", "2048") as address:
        yield address


def weather_tool() -> dict[str, Any]:
    """get_weather as OpenAI's API has it."""
    types = {str: "string"}
    hints = {k: {"type": types[v]} for k, v in get_type_hints(get_weather).items() if k != "return"}
    parameters = {"type": "object", "properties": hints, "required": list(hints)}
    described = {"name": "get_weather", "description": get_weather.__doc__}
    return {"type": "function", "function": {**described, "parameters": parameters}}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat"])
def test_litellm(url: str, provider: str) -> None:
    litellm = pytest.importorskip("litellm")
    base = url + "/v1" if provider == "openai" else url
    asked = {"model": f"{provider}/{NAME}", "api_base": base, "api_key": KEY, "timeout": 3600}
    messages = [{"role": "user", "content": ITALY}]
    whole = litellm.completion(messages=messages, temperature=0, **asked)
    assert "Rome" in whole.choices[0].message.content
    stream = litellm.completion(messages=messages, temperature=0, stream=True, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    messages = [{"role": "user", "content": PARIS}]
    found = litellm.completion(
        messages=messages, tools=[weather_tool()], tool_choice="required", **asked
    )
    call = found.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments).keys() >= {"city"}


def test_langchain_with_openai(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    made = {"model": NAME, "base_url": url + "/v1", "api_key": KEY, "timeout": 3600}
    _langchain_talks(langchain.ChatOpenAI(temperature=0, **made))
    _langchain_talks(langchain.ChatOpenAI(temperature=0, use_responses_api=True, **made))


def test_langchain_with_anthropic(url: str) -> None:
    langchain = pytest.importorskip("langchain_anthropic")
    _langchain_talks(
        langchain.ChatAnthropic(model=NAME, base_url=url, api_key=KEY, temperature=0, max_tokens=80)
    )


def test_langchain_with_ollama(url: str) -> None:
    langchain = pytest.importorskip("langchain_ollama")
    headers = {"headers": {"authorization": f"Bearer {KEY}"}}
    # This client has no tool_choice: whether the model calls is the model's affair.
    chat = langchain.ChatOllama(model=NAME, base_url=url, client_kwargs=headers, temperature=0)
    assert "Rome" in chat.invoke(ITALY).text
    found = chat.with_structured_output(Place, method="json_schema").invoke(ITALY)
    assert isinstance(found, Place)


def _langchain_talks(chat: Any) -> None:
    whole = chat.invoke(ITALY)
    assert "Rome" in whole.text
    assert "".join(chunk.text for chunk in chat.stream(ITALY)) == whole.text
    called = chat.bind_tools([get_weather], tool_choice="any").invoke(PARIS)
    assert called.tool_calls[0]["args"].keys() >= {"city"}
    found = chat.with_structured_output(Place, method="json_schema").invoke(ITALY)
    assert isinstance(found, Place)


def test_langchain_runs_a_tool_and_goes_on(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = langchain.ChatOpenAI(model=NAME, base_url=url + "/v1", api_key=KEY, max_tokens=40)
    first = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(PARIS)
    result = ToolMessage("sunny", tool_call_id=first.tool_calls[0]["id"])
    second = chat.bind_tools([get_weather]).invoke([HumanMessage(PARIS), first, result])
    assert second.response_metadata["finish_reason"] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("form", ["ToolOutput", "NativeOutput"])
def test_pydantic_ai_gets_an_object(url: str, form: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    agent = ai.Agent(_pydantic_model(url), output_type=getattr(ai, form)(Place))
    assert isinstance(agent.run_sync(ITALY).output, Place)


def test_pydantic_ai_streams(url: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    agent = ai.Agent(_pydantic_model(url))
    stream = agent.run_stream_sync(ITALY)
    assert "Rome" in "".join(stream.stream_text(delta=True))


def _pydantic_model(url: str) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url + "/v1", api_key=KEY)
    return OpenAIChatModel(NAME, provider=provider, settings={"temperature": 0.0})


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "JSON"])
def test_instructor(url: str, mode: str) -> None:
    instructor = pytest.importorskip("instructor")
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY) as client:
        asking = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
        messages = [{"role": "user", "content": ITALY}]
        found = asking.create(model=NAME, response_model=Place, messages=messages, max_tokens=200)
    assert isinstance(found, Place)


def test_llama_index(url: str) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool

    chat = like.OpenAILike(
        model=NAME, api_base=url + "/v1", api_key=KEY, is_chat_model=True, temperature=0,
        is_function_calling_model=True, context_window=2048, timeout=3600,
    )  # fmt: skip
    asked = [ChatMessage(role="user", content=ITALY)]
    whole = chat.chat(asked).message.content
    assert "Rome" in whole
    assert "".join(part.delta for part in chat.stream_chat(asked)) == whole
    tool = FunctionTool.from_defaults(get_weather)
    called = chat.chat_with_tools([tool], user_msg=PARIS, tool_required=True)
    calls = chat.get_tool_calls_from_response(called)
    assert calls[0].tool_kwargs.keys() >= {"city"}


def test_llm(url: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    entry = f"- model_id: local\n  model_name: {NAME}\n  api_base: {url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    asked = ["-m", "local", ITALY, "--key", KEY, "-o", "temperature", "0"]
    found = _llm(tmp_path, *asked)
    assert "Rome" in found
    assert _llm(tmp_path, *asked, "--no-stream") == found


def _llm(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={"LLM_USER_PATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
