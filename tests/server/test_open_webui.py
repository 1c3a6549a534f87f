"""What Open WebUI asks of a server, request by request; and Open WebUI itself, where it is there.

`make check-open-webui` installs it (about 3 GB) and runs the slow test, which needs no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import MESSAGES, Start
from tests.server.test_openai_chat import CALL, TOOL
from tests.support.fake_worker import FakeWorker
from tests.support.server_process import served

ITALY = {"messages": [{"role": "user", "content": "What is the capital of Italy?"}]}
START_SECONDS = 500


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


@pytest.mark.slow
@pytest.mark.parametrize("connection", ["openai", "ollama"])
def test_open_webui_lists_the_model_and_chats(tmp_path: Path, connection: str) -> None:
    with served("--ctx", "4096") as url, open_webui(tmp_path, url, connection) as client:
        (model,) = client.get("/api/models").json()["data"]
        assert model["id"].startswith("flashmoe-demo")
        body = ITALY | {"model": model["id"], "temperature": 0}
        whole = client.post("/api/chat/completions", json=body).raise_for_status().json()
        assert "Rome" in whole["choices"][0]["message"]["content"]
        streamed = client.post("/api/chat/completions", json=body | {"stream": True})
        data = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
        deltas = [c["delta"] for line in data for c in json.loads(line).get("choices") or ()]
        text = "".join(delta.get("content") or "" for delta in deltas)
        assert text.strip() == whole["choices"][0]["message"]["content"].strip()


@contextmanager
def open_webui(folder: Path, url: str, connection: str) -> Iterator[httpx.Client]:
    """Open WebUI before a server, without any network -> a client that is signed in."""
    program = os.environ.get("OPEN_WEBUI") or shutil.which("open-webui")
    if program is None:
        pytest.skip("OPEN WEBUI SKIPPED: it is not installed (make check-open-webui)")
    command = [program, "serve", "--host", "127.0.0.1", "--port", "4031"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=_environment(folder, url, connection), cwd=folder, stdout=log, stderr=log
        )
        try:
            with httpx.Client(base_url="http://127.0.0.1:4031", timeout=120) as client:
                _sign_in(client, process)
                yield client
        finally:
            process.terminate()
            process.wait(60)


def _environment(folder: Path, url: str, connection: str) -> dict[str, str]:
    off = dict.fromkeys(("TITLE_GENERATION", "TAGS_GENERATION", "FOLLOW_UP_GENERATION"), "False")
    return os.environ | {
        **{f"ENABLE_{name}": value for name, value in off.items()},
        "DATA_DIR": str(folder),
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ANONYMIZED_TELEMETRY": "false",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "of a test " * 4,
        "ENABLE_OPENAI_API": str(connection == "openai"),
        "OPENAI_API_BASE_URL": url + "/v1",
        "OPENAI_API_KEY": "any",
        "ENABLE_OLLAMA_API": str(connection == "ollama"),
        "OLLAMA_BASE_URL": url,
        "ENABLE_EVALUATION_ARENA_MODELS": "False",
    }


def _sign_in(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while not _healthy(client):
        assert process.poll() is None, "open-webui ended; see its log"
        assert time.monotonic() < end, "open-webui did not start"
        time.sleep(1)
    admin = {"email": "admin@localhost", "password": "admin"}
    signed = client.post("/api/v1/auths/signin", json=admin).raise_for_status().json()
    client.headers["authorization"] = f"Bearer {signed['token']}"


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
