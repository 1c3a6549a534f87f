from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from flashmoe.errors import StorageError
from tests.server.conftest import MESSAGES, Start
from tests.support.fake_worker import FakeWorker
from tests.support.sse import events

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES} | body)


def streamed(client: TestClient, **body: Any) -> list[Any]:
    """Data of the chunks, [DONE] checked and cut off."""
    response = post(client, stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = [event.data for event in events(response.text)]
    assert last == "[DONE]"
    return chunks


def test_a_whole_answer(client: TestClient) -> None:
    body = post(client).json()
    assert body["object"] == "chat.completion"
    choice = body["choices"][0]
    assert choice["message"]["content"] == "Hello there."
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_figures_of_the_engine_come_along(client: TestClient) -> None:
    body = post(client).json()
    assert body["flashmoe"]["hit_rate"] == 0.75
    assert body["flashmoe"]["gb_read"] == 1.5
    assert body["timings"]["cache_n"] == 2
    assert body["timings"]["prompt_ms"] == 500


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: TestClient) -> None:
    chunks = streamed(client)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert not any("role" in delta for delta in deltas[1:])
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello there."
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_usage_is_the_last_chunk_where_asked_for(client: TestClient) -> None:
    assert all(chunk["choices"] for chunk in streamed(client))
    last = streamed(client, stream_options={"include_usage": True})[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0


def test_progress_is_told_on_request(client: TestClient) -> None:
    chunks = streamed(client, return_progress=True)
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert told[0]["processed"] == 0
    assert told[-1]["processed"] == told[-1]["total"] > 0
    assert not any("prompt_progress" in chunk for chunk in streamed(client))


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_join_to_the_text(client: TestClient, stream: bool) -> None:
    if stream:
        chunks = streamed(client, logprobs=True, top_logprobs=2)
        found = [c["choices"][0]["logprobs"] for c in chunks]
        entries = [entry for logprobs in found if logprobs for entry in logprobs["content"]]
    else:
        choice = post(client, logprobs=True, top_logprobs=2).json()["choices"][0]
        entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "Hello there."
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in entries)
    assert bytes(entries[0]["bytes"]).decode() == entries[0]["token"]


def test_sampling_fields_reach_the_engine(start: Start) -> None:
    worker = FakeWorker()
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    more = {"logit_bias": {"5": -1}, "stop": "x", "max_tokens": 9, "repeat_penalty": 1.5}
    assert post(start(worker), **fields, **more).status_code == 200
    options = worker.last.sampling
    assert {name: getattr(options, name) for name in fields} == fields
    assert (options.logit_bias, options.stop, options.max_tokens) == ({5: -1.0}, ("x",), 9)
    assert options.repeat_penalty == 1.5


def test_without_a_limit_the_context_is_the_limit(start: Start) -> None:
    worker = FakeWorker()
    post(start(worker))
    assert worker.last.sampling.max_tokens == 512 - len(worker.last.prompt_ids) + 1


def test_an_answer_of_no_tokens(start: Start) -> None:
    body = post(start(), max_tokens=0).json()
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(start: Start, stream: bool) -> None:
    worker = FakeWorker(lambda request: f"Answer {request.sampling.seed}.")
    client = start(worker)
    if stream:
        texts = ["", ""]
        for chunk in streamed(client, n=2, seed=7):
            choice = chunk["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content") or ""
    else:
        choices = post(client, n=2, seed=7).json()["choices"]
        texts = [choice["message"]["content"] for choice in choices]
    assert texts == ["Answer 7.", "Answer 8."]


def test_a_stop_string_ends_the_answer(client: TestClient) -> None:
    choice = post(client, stop=[" there"]).json()["choices"][0]
    assert choice["message"]["content"] == "Hello"
    assert choice["finish_reason"] == "stop"


def test_a_call_as_a_whole(start: Start) -> None:
    choice = post(start(FakeWorker(CALL)), tools=[TOOL]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    call = choice["message"]["tool_calls"][0]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_a_call_in_pieces(start: Start) -> None:
    chunks = streamed(start(FakeWorker(CALL)), tools=[TOOL])
    deltas = [c["choices"][0]["delta"] for c in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    first, *rest = calls
    assert first["function"] == {"name": "get_weather", "arguments": ""}
    assert first["id"]
    assert all(set(call) == {"index", "function"} for call in rest)
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"city": "Rome"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_second_turn_of_a_call(start: Start) -> None:
    worker = FakeWorker("It is sunny.")
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    response = post(start(worker), messages=turns, tools=[TOOL])
    assert response.json()["choices"][0]["message"]["content"] == "It is sunny."
    prompt = worker.tokenizer.decode(worker.last.prompt_ids, skip_special=False)
    assert '{"city": "Rome"}' in prompt


@pytest.mark.parametrize(
    ("choice", "masked"), [("none", True), ("auto", True), ("required", True), (None, True)]
)
def test_calls_are_held_to_their_form(start: Start, choice: str | None, masked: bool) -> None:
    worker = FakeWorker()
    post(start(worker), tools=[TOOL], tool_choice=choice)
    assert (worker.last.mask is not None) == masked


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"regex": "[a-z]+"},
        {"lark": 'start: "a"'},
        {"grammar": 'root ::= "a"'},
    ],
)
def test_forms_become_masks(start: Start, body: dict[str, Any]) -> None:
    worker = FakeWorker()
    assert post(start(worker), **body).status_code == 200
    assert worker.last.mask is not None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"stop": ["a"] * 99}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"foo": 0}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "no"}}}, "tool_choice"),
        ({"lark": "no grammar"}, "grammar"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, body: dict[str, Any], param: str) -> None:
    response = post(client, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_unknown_fields_and_nulls_are_ignored(client: TestClient) -> None:
    assert post(client, mirostat=2, temperature=None, tools=None, user="me").status_code == 200


def test_a_prompt_too_long_is_refused_with_both_numbers(client: TestClient) -> None:
    response = post(client, messages=[{"role": "user", "content": "word " * 600}])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["n_ctx"] == 512
    assert error["n_prompt_tokens"] > 512


def test_a_full_queue_says_when_to_come_again(start: Start) -> None:
    response = post(start(FakeWorker(room=0)))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert response.json()["error"]["code"] == "queue_full"


def test_a_fault_of_the_engine_keeps_its_place_back(start: Start) -> None:
    worker = FakeWorker(error=StorageError("short read", where="/secret/place"))
    client = start(worker)
    response = post(client)
    assert response.status_code == 500
    assert "short read" in response.text
    assert "secret" not in response.text
    assert "error" in streamed(client)[-1]


def test_client_text_cannot_become_markup(start: Start) -> None:
    worker = FakeWorker()
    post(start(worker), messages=[{"role": "user", "content": "<|im_end|>"}])
    mine = len([id for id in worker.last.prompt_ids if id in worker.tokenizer.markup_ids])
    post(start(worker), messages=[{"role": "user", "content": "x"}])
    plain = len([id for id in worker.last.prompt_ids if id in worker.tokenizer.markup_ids])
    assert mine == plain


def test_contents_in_parts_are_joined(start: Start) -> None:
    worker = FakeWorker()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    post(start(worker), messages=[{"role": "user", "content": parts}])
    assert "one\ntwo" in worker.tokenizer.decode(worker.last.prompt_ids)


def test_reasoning_is_told_apart(start: Start) -> None:
    message = post(start(FakeWorker("<think>\nHm.\n</think>\n\nYes."))).json()["choices"][0][
        "message"
    ]
    assert message["content"] == "Yes."
    assert message["reasoning_content"].strip() == "Hm."
    assert message["reasoning"] == message["reasoning_content"]


def test_equal_requests_share_a_run_only_without_chance(start: Start) -> None:
    worker = FakeWorker()
    client = start(worker)
    for body in ({"temperature": 0}, {"temperature": 0, "stream": True}, {}, {}):
        post(client, **body)
    first, second, third, fourth = worker.keys
    assert first == second
    assert len({first, third, fourth}) == 3


def test_a_repetition_joins_the_draw_before_it(start: Start) -> None:
    worker = FakeWorker()
    client = start(worker)
    post(client)
    again = {"messages": MESSAGES}
    client.post("/v1/chat/completions", json=again, headers={"x-stainless-retry-count": "1"})
    assert worker.keys[0] == worker.keys[1]


def test_markup_of_calls_is_content_where_no_tools_are_offered(start: Start) -> None:
    for body in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = post(start(FakeWorker(CALL)), **body).json()["choices"][0]
        assert choice["message"]["content"] == CALL
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
