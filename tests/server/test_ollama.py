from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient

from tests.server.conftest import MESSAGES, Start
from tests.server.test_openai_chat import CALL, TOOL
from tests.support.fake_worker import FakeWorker


def lines(response: Any) -> list[Any]:
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def chat(client: TestClient, **body: Any) -> Any:
    return client.post("/api/chat", json={"model": "scripted", "messages": MESSAGES} | body)


def test_a_stream_is_the_default(client: TestClient) -> None:
    found = lines(chat(client))
    assert "".join(line["message"]["content"] for line in found) == "Hello there."
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["done_reason"] == "stop"
    assert found[-1]["eval_count"] > 0


def test_a_whole_answer(client: TestClient) -> None:
    body = chat(client, stream=False).json()
    assert body["message"] == {"role": "assistant", "content": "Hello there."}
    assert body["prompt_eval_duration"] == 500_000_000


def test_calls_come_whole_with_their_arguments_as_an_object(start: Start) -> None:
    for stream in (False, True):
        response = chat(start(FakeWorker(CALL)), tools=[TOOL], stream=stream)
        found = lines(response) if stream else [response.json()]
        calls = [c for line in found for c in line["message"].get("tool_calls", [])]
        assert calls[0]["function"] == {"name": "get_weather", "arguments": {"city": "Rome"}}


def test_options_reach_the_engine(start: Start) -> None:
    worker = FakeWorker()
    options = {
        "temperature": 0.3,
        "num_predict": 5,
        "seed": 1,
        "stop": ["x"],
        "repeat_penalty": 1.2,
    }
    chat(start(worker), options=options, stream=False)
    sampling = worker.last.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.3, 5, 1)
    assert (sampling.stop, sampling.repeat_penalty) == (("x",), 1.2)


def test_generate_by_template_and_raw(start: Start) -> None:
    worker = FakeWorker()
    client = start(worker)
    body = {"prompt": "Hi", "stream": False}
    assert client.post("/api/generate", json=body).json()["response"] == "Hello there."
    assert len(worker.last.prompt_ids) > 2
    client.post("/api/generate", json=body | {"raw": True})
    assert worker.last.prompt_ids == tuple(worker.tokenizer.encode("Hi"))


def test_an_empty_question_only_wants_the_model_to_be_there(client: TestClient) -> None:
    assert chat(client, messages=[]).json()["done_reason"] == "load"
    assert client.post("/api/generate", json={"model": "x"}).json()["done_reason"] == "load"


def test_a_form(start: Start) -> None:
    worker = FakeWorker()
    for format in ("json", {"type": "object"}):
        assert chat(start(worker), format=format).status_code == 200
        assert worker.last.mask is not None
    assert chat(start(worker), format="xml").status_code == 400


def test_what_there_is(client: TestClient) -> None:
    assert client.get("/api/tags").json()["models"][0]["name"] == "scripted"
    assert client.get("/api/ps").json()["models"][0]["name"] == "scripted"
    assert client.get("/api/version").json()["version"]
    shown = client.post("/api/show", json={"model": "scripted:latest"}).json()
    assert "tools" in shown["capabilities"]
    assert client.post("/api/show", json={"model": "other"}).status_code == 404


def test_errors_are_one_text(client: TestClient) -> None:
    response = chat(client, options={"temperature": "hot"})
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)
