"""What only a real socket shows: clients that leave, silence, slow bodies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest

from flashmoe.server.service import Service
from flashmoe.server.settings import Limits, ServerSettings
from tests.server.conftest import MESSAGES, listening, served_by
from tests.support.fake_worker import FakeWorker

PATHS = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Once"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 50},
    "/api/chat": {"messages": MESSAGES},
}


def wait_until(true: Callable[[], bool]) -> float:
    """Seconds until it was true."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < 5
        time.sleep(0.005)
    return time.monotonic() - start


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_who_leaves_during_the_prompt_is_noticed_at_once(path: str, stream: bool) -> None:
    worker = FakeWorker(prefill=8)
    with listening(Service(ServerSettings(), served_by(worker))) as url:
        connection = leave_open(url, path, {**PATHS[path], "stream": stream})
        wait_until(lambda: len(worker.tickets) == 1)
        connection.close()
        assert wait_until(worker.tickets[0].gone.is_set) < 0.5


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(url).port or 0))


def leave_open(url: str, path: str, body: dict[str, object]) -> socket.socket:
    """A connection that sent a request and reads no answer."""
    request = httpx.Request("POST", url + path, json=body)
    head = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    connection = connected(url)
    connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    return connection


def test_who_leaves_between_tokens_is_noticed() -> None:
    worker = FakeWorker("one two three four five six seven eight nine ten", step=0.1)
    with listening(Service(ServerSettings(), served_by(worker))) as url:
        body = {"messages": MESSAGES, "stream": True}
        with httpx.stream("POST", url + "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
        assert wait_until(worker.tickets[0].gone.is_set) < 0.5


@pytest.mark.parametrize(
    ("path", "sign"),
    [
        ("/v1/chat/completions", ": prompt 0/"),
        ("/v1/completions", ": prompt 0/"),
        ("/v1/responses", ": prompt 0/"),
        ("/v1/messages", "event: ping"),
        ("/api/chat", '"content":""'),
    ],
)
def test_silence_is_filled(path: str, sign: str) -> None:
    settings = ServerSettings(keepalive=0.05)
    with listening(Service(settings, served_by(FakeWorker(prefill=0.3)))) as url:
        text = httpx.post(url + path, json={**PATHS[path], "stream": True}).text
    assert text.count(sign) >= 3


def test_a_body_that_does_not_come() -> None:
    service = Service(ServerSettings(limits=Limits(body_seconds=0.1)), served_by(FakeWorker()))
    with listening(service) as url, connected(url) as connection:
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        assert b" 408 " in connection.recv(1000).splitlines()[0]


def test_an_answer_that_takes_too_long() -> None:
    settings = ServerSettings(limits=Limits(answer_seconds=0.1))
    worker = FakeWorker(prefill=8)
    with listening(Service(settings, served_by(worker))) as url:
        response = httpx.post(url + "/v1/chat/completions", json={"messages": MESSAGES})
        assert response.status_code == 504
        assert wait_until(worker.tickets[0].gone.is_set) < 0.5
