from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from flashmoe.server.app import make_app
from flashmoe.server.service import Service
from flashmoe.server.settings import ServerSettings
from tests.server.conftest import MESSAGES


def test_while_the_model_is_loaded_the_server_says_so() -> None:
    client = TestClient(make_app(Service(ServerSettings())), base_url="http://localhost")
    for response in (
        client.get("/health"),
        client.get("/v1/models"),
        client.post("/v1/chat/completions", json={"messages": MESSAGES}),
    ):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "loading"
    assert client.get("/metrics").status_code == 200


def test_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_models(client: TestClient) -> None:
    found = client.get("/v1/models").json()["data"][0]
    assert (found["id"], found["context_length"]) == ("scripted", 512)
    assert client.get("/v1/models/scripted").json() == found
    assert client.get("/v1/models/other/one").status_code == 404


def test_metrics_parse_and_count(client: TestClient) -> None:
    client.post("/v1/chat/completions", json={"messages": MESSAGES})
    text = client.get("/metrics").text
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["flashmoe_requests_total"] == 1
    assert found["flashmoe_expert_cache_hits_total"] == 75
    assert found["flashmoe_expert_cache_misses_total"] == 25
    assert found["flashmoe_time_to_first_token_seconds_count"] == 1
    assert found["flashmoe_time_per_token_seconds_count"] == 1
    assert found["flashmoe_http_responses_total"] == 1
    assert found["flashmoe_queue_depth"] == 0


def test_slots(client: TestClient) -> None:
    assert client.get("/slots").json() == []


def test_text_to_tokens_and_back(client: TestClient) -> None:
    told = client.post("/tokenize", json={"content": "Hi <|im_end|>", "with_pieces": True}).json()
    assert told["count"] == len(told["tokens"])
    ids = [token["id"] for token in told["tokens"]]
    assert client.post("/detokenize", json={"tokens": ids}).json()["content"] == "Hi <|im_end|>"
    plain = client.post("/tokenize", json={"content": "<|im_end|>", "parse_special": False}).json()
    assert plain["count"] > 1


def test_a_prompt_can_be_looked_at(client: TestClient) -> None:
    told = client.post("/apply-template", json={"messages": MESSAGES}).json()
    assert told["prompt"].endswith("<|im_start|>assistant\n")
    assert told["count"] == len(told["tokens"])
