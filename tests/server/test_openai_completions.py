from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import Start
from tests.support.fake_worker import FakeWorker
from tests.support.sse import events


def post(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": "Once"} | body)


def test_a_whole_answer(client: TestClient) -> None:
    body = post(client).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "Hello there."


def test_the_prompt_is_taken_as_it_stands(start: Start) -> None:
    worker = FakeWorker()
    post(start(worker))
    assert worker.last.prompt_ids == tuple(worker.tokenizer.encode("Once"))
    post(start(worker), prompt=[5, 6, 7])
    assert worker.last.prompt_ids == (5, 6, 7)


def test_scores_of_a_prompt(start: Start) -> None:
    worker = FakeWorker()
    choice = post(start(worker), echo=True, max_tokens=0, logprobs=1).json()["choices"][0]
    scores = choice["logprobs"]
    assert choice["text"] == "Once" == "".join(scores["tokens"])
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert all(value <= 0 for value in scores["token_logprobs"][1:])
    places = scores["text_offset"]
    assert [choice["text"][i:].startswith(t) for i, t in zip(places, scores["tokens"], strict=True)]
    assert not worker.last.answer


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_choices_are_numbered_through(start: Start, stream: bool) -> None:
    client = start(FakeWorker(lambda request: f"{len(request.prompt_ids)},{request.sampling.seed}"))
    response = post(client, prompt=[[5], [5, 6]], n=2, seed=0, stream=stream)
    texts = [""] * 4
    chunks = [e.data for e in events(response.text)[:-1]] if stream else [response.json()]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["1,0", "1,1", "2,0", "2,1"]


def test_usage_counts_each_prompt_once(client: TestClient) -> None:
    usage = post(client, prompt=[[5], [5, 6]], n=2).json()["usage"]
    assert usage["prompt_tokens"] == 3


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": []},
        {"prompt": [5, "x"]},
        {"prompt": [99999]},
        {"prompt": [-1]},
        {"prompt": ""},
        {"prompt": {"a": 1}},
        {"best_of": 3},
        {"suffix": "end"},
        {"logprobs": True},
    ],
)
def test_what_is_wrong_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    response = post(client, **body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
