"""Ctrl-C and SIGTERM at a server process that is busy: every client gets an end, no traceback."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.conftest import MESSAGES
from tests.support.server_process import server_process

SCRIPTED = ("-m", "tests.support.scripted_server")
CLI = ("-c", "from flashmoe.cli import main; main()", "serve", "--ctx", "4096", "--port")
# The demo model's control tokens cannot be drawn: an answer as long as the context.
ENDLESS = {"messages": MESSAGES, "logit_bias": {str(id): -100 for id in range(8)}}
CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Once", "max_tokens": 400},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 400},
    "/api/chat": {"messages": MESSAGES},
}
# A signal, and how a process ends that it stopped: SIGTERM takes it down when all is closed.
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
signals = pytest.mark.parametrize(("number", "status"), SIGNALS)
Post = Callable[[str, bool], "Future[httpx.Response]"]


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        yield pool


def posting(clients: ThreadPoolExecutor, url: str) -> Post:
    """(path, stream) -> the response to come."""

    def post(path: str, stream: bool) -> Future[httpx.Response]:
        body = BODIES[path] | {"stream": stream}
        return clients.submit(httpx.post, url + path, json=body, timeout=30)

    return post


def sent(url: str, text: bytes) -> socket.socket:
    """An open connection on which this was sent."""
    connection = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=30)
    connection.sendall(text)
    return connection


def wait_for_slots(url: str, count: int) -> None:
    end = time.monotonic() + 20
    while len(httpx.get(url + "/slots").json()) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def stopped(process: subprocess.Popen[str], number: int) -> str:
    """What the process wrote to stderr until it had ended."""
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    return told


@pytest.mark.parametrize("prefill", [0, 60])
@signals
def test_every_answer_under_way_ends_with_an_error(
    clients: ThreadPoolExecutor, number: int, status: int, prefill: int
) -> None:
    with server_process(*SCRIPTED, "0.1", str(prefill)) as (url, process):
        post = posting(clients, url)
        whole = [post(path, False) for path in BODIES]
        streams = {path: post(path, True) for path in BODIES}
        wait_for_slots(url, 2 * len(BODIES))
        assert stopped(process, number) == ""
        assert process.returncode == status
    for answer in whole:
        assert answer.result().status_code == 503
        assert "the server is stopping" in answer.result().text
    for path, stream in streams.items():
        assert "the server is stopping" in last_event(path, stream.result().text)


def last_event(path: str, text: str) -> str:
    """The last event of a stream that ended as it should."""
    *events, last = text.split("\n" if path.startswith("/api/") else "\n\n")[:-1]
    if last == "data: [DONE]":
        last = events[-1]
    json.loads(last.split("data: ")[-1])
    return last


@signals
def test_connections_without_an_answer_do_not_hold_it_up(
    clients: ThreadPoolExecutor, number: int, status: int
) -> None:
    with server_process(*SCRIPTED, "0.1", "0") as (url, process), httpx.Client() as idle:
        assert idle.get(url + "/metrics").status_code == 200
        head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
        post = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        with sent(url, b""), sent(url, head), sent(url, post):
            time.sleep(0.2)
            assert stopped(process, number) == ""
    assert process.returncode == status


@signals
def test_the_engine_itself_is_stopped(
    clients: ThreadPoolExecutor, number: int, status: int
) -> None:
    with server_process(*CLI) as (url, process):
        body = ENDLESS | {"stream": True}
        stream = clients.submit(httpx.post, url + CHAT, json=body, timeout=60)
        wait_for_slots(url, 1)
        told = stopped(process, number)
    assert process.returncode == status
    assert told.splitlines()[1:] == []  # after what is said at the start
    assert "the server is stopping" in last_event(CHAT, stream.result().text)


def test_a_second_ctrl_c_ends_it_at_once(clients: ThreadPoolExecutor) -> None:
    with server_process(*SCRIPTED, "0.1", "60") as (url, process):
        answer = posting(clients, url)(CHAT, True)
        wait_for_slots(url, 1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        start = time.monotonic()
        assert stopped(process, signal.SIGINT) == ""
        assert time.monotonic() - start < 1
    assert process.returncode == -signal.SIGINT
    assert isinstance(answer.exception(), httpx.RemoteProtocolError)
