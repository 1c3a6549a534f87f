from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import Start
from tests.server.test_openai_chat import CALL
from tests.server.test_openai_chat import TOOL as CHAT_TOOL
from tests.support.fake_worker import FakeWorker
from tests.support.sse import events

TOOL = {"type": "function"} | CHAT_TOOL["function"]  # type: ignore[operator]


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/responses", json={"input": "Hi"} | body)


def test_a_whole_answer(client: TestClient) -> None:
    body = post(client).json()
    assert (body["object"], body["status"]) == ("response", "completed")
    assert body["output"][0]["content"][0]["text"] == "Hello there."
    assert body["usage"]["input_tokens_details"] == {"cached_tokens": 2, "cache_write_tokens": 0}


def test_the_events_of_a_text(client: TestClient) -> None:
    found = events(post(client, stream=True).text)
    assert all(event.name == event.data["type"] for event in found)
    assert [event.data["sequence_number"] for event in found] == list(range(len(found)))
    deltas = [e.data["delta"] for e in found if e.name == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there."
    assert [event.name for event in found if not str(event.name).endswith("delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    last = found[-1].data["response"]
    assert last["output"] == [found[-2].data["item"]]


def test_reasoning_and_a_call(start: Start) -> None:
    client = start(FakeWorker("<think>Hm.</think>" + CALL))
    output = post(client, tools=[TOOL]).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    found = events(post(client, tools=[TOOL], stream=True).text)
    deltas = [e.data["delta"] for e in found if e.name == "response.function_call_arguments.delta"]
    assert json.loads("".join(deltas)) == {"city": "Rome"}
    assert "response.reasoning_text.done" in [event.name for event in found]


def test_the_second_turn_of_a_call(start: Start) -> None:
    worker = FakeWorker("Sunny.")
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "sun"},
    ]
    body = post(start(worker), input=turns, instructions="Be brief.").json()
    assert body["output"][0]["content"][0]["text"] == "Sunny."
    prompt = worker.tokenizer.decode(worker.last.prompt_ids, skip_special=False)
    assert prompt.index("Be brief.") < prompt.index("Weather?") < prompt.index('{"a": 1}')


@pytest.mark.parametrize(
    "body",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "p"}},
        {"background": True},
        {"input": [{"type": "item_reference", "id": "x"}]},
    ],
)
def test_state_is_refused_by_name(client: TestClient, body: dict[str, Any]) -> None:
    response = post(client, **body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "stateless_server"


def test_the_probe_of_codex(client: TestClient) -> None:
    body = post(client, input=[], max_output_tokens=1, store=True).json()
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}


def test_hosted_tools_are_ignored_by_name(client: TestClient) -> None:
    body = post(client, tools=[TOOL, {"type": "web_search"}]).json()
    assert body["flashmoe"]["ignored_tools"] == ["web_search"]


def test_a_schema(start: Start) -> None:
    worker = FakeWorker()
    format = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    assert post(start(worker), text={"format": format}).status_code == 200
    assert worker.last.mask is not None


def test_log_probabilities(client: TestClient) -> None:
    body = post(client, include=["message.output_text.logprobs"], top_logprobs=1).json()
    entries = body["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in entries) == "Hello there."
