"""What Open WebUI asks of a server, request by request, as its backend sends them."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.server.conftest import MESSAGES, Start
from tests.server.test_openai_chat import CALL, TOOL
from tests.support.fake_worker import FakeWorker


def chunks(response: Any) -> list[Any]:
    data = [
        line.removeprefix("data: ") for line in response.text.splitlines() if line[:5] == "data:"
    ]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def test_the_list_of_an_openai_connection(start: Start) -> None:
    """Its time limit is 10 s: the list must come while answers are made."""
    client = start(FakeWorker(step=0.2))
    with client.stream("POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}):
        begin = time.monotonic()
        listed = client.get("/v1/models", headers={"authorization": "Bearer any"}).json()
        assert time.monotonic() - begin < 5
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert {"id", "object", "created", "owned_by"} <= model.keys()
    assert client.get("/models").json() == listed


def test_the_lists_of_an_ollama_connection(start: Start) -> None:
    client = start()
    assert client.get("/api/version").json()["version"].count(".") == 2
    (model,) = client.get("/api/tags").json()["models"]
    assert {"name", "model", "modified_at", "size", "digest", "details"} <= model.keys()
    assert client.get("/api/ps").json()["models"][0]["model"] == model["model"]
    shown = client.post("/api/show", json={"name": model["model"]}).json()
    assert {"details", "model_info", "capabilities"} <= shown.keys()


def test_a_chat_with_all_that_it_sends(start: Start) -> None:
    """Fields of its own are ignored; an id that is not ours is no error: there is one model."""
    body = {
        "model": "scripted",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 30,
        "frequency_penalty": 0,
        "chat_id": "1",
        "session_id": "2",
        "metadata": {"user_id": "3", "features": {"web_search": False}},
        "user": {"id": "3", "name": "User", "role": "admin"},
    }
    told = chunks(start().post("/v1/chat/completions", json=body))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in told if c["choices"])
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["completion_tokens"] > 0
    assert {"prompt_per_second", "predicted_per_second"} <= told[-1]["timings"].keys()


def test_reasoning_has_a_field_of_its_own(start: Start) -> None:
    worker = FakeWorker("<think>\nHm\n</think>\n\nYes")
    told = chunks(
        start(worker).post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})
    )
    deltas = [c["choices"][0]["delta"] for c in told if c["choices"]]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "Hm"
    assert "".join(d.get("content") or "" for d in deltas) == "Yes"


def test_native_tools_over_two_turns(start: Start) -> None:
    client = start(FakeWorker(CALL))
    first = client.post("/v1/chat/completions", json={"messages": MESSAGES, "tools": [TOOL]}).json()
    call = first["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    said = {"role": "assistant", "content": "", "tool_calls": [{"index": 0, **call}]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    asked = {"messages": [*MESSAGES, said, result], "tools": [TOOL]}
    assert client.post("/v1/chat/completions", json=asked).status_code == 200


def test_continue_goes_on_with_the_last_answer(start: Start) -> None:
    """The button "Continue" of a connection of the type llama.cpp."""
    worker = FakeWorker()
    begun = [*MESSAGES, {"role": "assistant", "content": "The capital"}]
    asked = {"continue_final_message": True, "add_generation_prompt": False, "messages": begun}
    assert start(worker).post("/v1/chat/completions", json=asked).status_code == 200
    text = worker.tokenizer.decode(list(worker.last.prompt_ids), skip_special=False)
    assert text.endswith("The capital")
