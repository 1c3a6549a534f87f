"""Servers over a worker that plays a script: in this process, or behind a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

import uvicorn
from starlette.testclient import TestClient

from flashmoe.demo import demo_model_path
from flashmoe.generate.grammar import Grammars
from flashmoe.parsers.registry import reply_format
from flashmoe.server.app import make_app
from flashmoe.server.served import Served
from flashmoe.server.service import Service
from flashmoe.server.settings import ServerSettings
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.stop_tokens import stop_ids
from tests.support.fake_worker import FakeWorker

MESSAGES = [{"role": "user", "content": "Hi"}]
Start = Callable[..., Any]


def served_by(worker: FakeWorker, **changes: Any) -> Served:
    """The demo model's text side over a scripted worker."""
    directory, tokenizer = demo_model_path(), worker.tokenizer
    template = ChatTemplate(directory)
    reply, ends = reply_format(tokenizer, template), stop_ids(directory, tokenizer, template)
    fields: dict[str, Any] = {
        "name": "scripted",
        "worker": worker,
        "tokenizer": tokenizer,
        "template": template,
        "stop_ids": ends,
        "context_length": 512,
        "vocab_size": 8192,
        "format": reply,
        "grammars": Grammars(tokenizer, 8192, stop_ids=ends, reply=reply),
        "defaults": {"temperature": 1.0},
    }
    return Served(**(fields | changes))


@pytest.fixture
def start() -> Start:
    """(worker, settings fields) -> a client of a server in this process."""

    def make(worker: FakeWorker | None = None, **settings: Any) -> TestClient:
        service = Service(ServerSettings(**settings), served_by(worker or FakeWorker()))
        return TestClient(make_app(service), base_url="http://localhost")

    return make


@pytest.fixture
def client(start: Start) -> TestClient:
    """A server that always says "Hello there."."""
    made: TestClient = start()
    return made


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """A server behind a real socket -> its address."""
    config = uvicorn.Config(make_app(service), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
