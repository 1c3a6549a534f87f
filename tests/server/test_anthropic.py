from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from flashmoe.server.anthropic_shapes import without_billing
from tests.server.conftest import MESSAGES, Start
from tests.server.test_openai_chat import CALL
from tests.support.fake_worker import FakeWorker
from tests.support.sse import events

TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/messages", json={"messages": MESSAGES, "max_tokens": 50} | body)


def prompt_of(worker: FakeWorker) -> str:
    return worker.tokenizer.decode(worker.last.prompt_ids, skip_special=False)


def test_a_whole_answer(client: TestClient) -> None:
    body = post(client).json()
    assert body["type"] == "message"
    assert body["content"] == [{"type": "text", "text": "Hello there."}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["cache_read_input_tokens"] == 2
    assert body["flashmoe"]["gb_read"] == 1.5


def test_a_stream_opens_and_closes_its_blocks(start: Start) -> None:
    client = start(FakeWorker("<think>Hm.</think>Look:" + CALL))
    found = events(post(client, stream=True, tools=[TOOL]).text)
    assert all(event.name == event.data["type"] for event in found)
    kinds = [event.name for event in found if event.name != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block * 3, "message_delta", "message_stop"]
    starts = [e.data["content_block"]["type"] for e in found if e.name == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    pieces = [e.data["delta"] for e in found if e.name == "content_block_delta"]
    given = "".join(p["partial_json"] for p in pieces if p["type"] == "input_json_delta")
    assert json.loads(given) == {"city": "Rome"}
    assert found[-2].data["delta"]["stop_reason"] == "tool_use"


def test_a_call_and_its_second_turn(start: Start) -> None:
    client = start(FakeWorker(CALL))
    body = post(client, tools=[TOOL]).json()
    call = body["content"][0]
    assert (call["type"], call["name"], call["input"]) == (
        "tool_use",
        "get_weather",
        {"city": "Rome"},
    )
    worker = FakeWorker("Sunny.")
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "sun"}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": body["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    answer = post(start(worker), messages=turns, tools=[TOOL]).json()
    assert answer["content"][0]["text"] == "Sunny."
    assert "<tool_response>\nsun\n</tool_response>" in prompt_of(worker)
    assert "So?" in prompt_of(worker)


def test_the_changing_header_of_claude_code_is_left_out(start: Start) -> None:
    header = "x-anthropic-billing-header: cc_version=2.1; cch={};\n"
    prompts = []
    for number in ("aa", "bb"):
        worker = FakeWorker()
        blocks = [
            {"type": "text", "text": header.format(number)},
            {"type": "text", "text": "Help."},
        ]
        post(start(worker), system=blocks)
        prompts.append(worker.last.prompt_ids)
        assert "billing" not in prompt_of(worker)
        assert "Help." in prompt_of(worker)
    assert prompts[0] == prompts[1]
    assert without_billing("You help.\nNothing else.") == "You help.\nNothing else."


def test_stop_sequences_are_named(client: TestClient) -> None:
    body = post(client, stop_sequences=[" there"]).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", " there")


def test_tokens_run_out(client: TestClient) -> None:
    assert post(client, max_tokens=1).json()["stop_reason"] == "max_tokens"


def test_counting_tokens(start: Start) -> None:
    worker = FakeWorker()
    client = start(worker)
    count = client.post("/v1/messages/count_tokens", json={"messages": MESSAGES, "system": "Be."})
    post(client, system="Be.")
    assert count.json() == {"input_tokens": len(worker.last.prompt_ids)}


def test_tools_that_a_model_alone_cannot_have_are_named(client: TestClient) -> None:
    tools = [TOOL, {"type": "web_search_20250305", "name": "web_search"}]
    assert post(client, tools=tools).json()["flashmoe"]["ignored_tools"] == ["web_search"]


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": "many"},
        {"max_tokens": 0},
        {"messages": [{"role": "tool", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"tools": [{"name": "a b"}]},
        {"tool_choice": {"type": "tool", "name": "none_such"}},
        {"tool_choice": {"type": ["odd"]}},
    ],
)
def test_errors_have_their_own_shape(client: TestClient, body: dict[str, Any]) -> None:
    response = post(client, **body)
    assert response.status_code == 400
    told = response.json()
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"


def test_a_prompt_too_long(client: TestClient) -> None:
    error = post(client, messages=[{"role": "user", "content": "word " * 600}]).json()["error"]
    assert error["n_ctx"] == 512
    assert error["n_prompt_tokens"] > 512
