from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from flashmoe.server.app import routes
from flashmoe.server.security import key_fits, refusal
from flashmoe.server.settings import Limits, ServerSettings
from tests.server.conftest import MESSAGES, Start

CHAT = "/v1/chat/completions"
ASKED = {"messages": MESSAGES}
OPEN = {"/", "/health", "/page/{name}"}


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.path)
def test_every_route_but_health_and_the_page_needs_the_key(start: Start, route: object) -> None:
    client, path = start(keys=("secret",)), route.path  # type: ignore[attr-defined]
    method = "POST" if "POST" in route.methods else "GET"  # type: ignore[attr-defined]
    response = client.request(method, path.replace("{name}", "x").replace("{name:path}", "x"))
    assert (response.status_code != 401) == (path in OPEN)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("authorization", "Bearer secret", 200),
        ("authorization", "bearer second", 200),
        ("x-api-key", "secret", 200),
        ("authorization", "Bearer secre", 401),
        ("authorization", "Basic secret", 401),
        ("x-api-key", "", 401),
        ("x-api-key", "sécret", 401),
    ],
)
def test_keys(start: Start, header: str, value: str, status: int) -> None:
    client = start(keys=("secret", "second"))
    response = client.post(CHAT, json=ASKED, headers={header: value.encode()})
    assert response.status_code == status
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"


@given(st.lists(st.text()), st.lists(st.text(min_size=1)))
def test_only_an_equal_key_fits(given: list[str], keys: list[str]) -> None:
    encoded = [text.encode("utf-8", "replace") for text in given]
    plain = [key for key in keys if key.isascii()]
    assert key_fits(given, plain) == any(key.encode() in encoded for key in plain)


def test_paths_that_do_not_exist_need_the_key_too(start: Start) -> None:
    assert start(keys=("secret",)).get("/nothing").status_code == 401


def test_foreign_pages_may_not_call(start: Start) -> None:
    client = start()
    evil = {"origin": "https://evil.example"}
    assert client.post(CHAT, json=ASKED, headers=evil).status_code == 403
    own = {"origin": "http://localhost"}
    response = client.post(CHAT, json=ASKED, headers=own)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_chosen_pages_may(start: Start) -> None:
    client = start(cors=("https://good.example",))
    good = {"origin": "https://good.example"}
    response = client.post(CHAT, json=ASKED, headers=good)
    assert response.headers["access-control-allow-origin"] == "https://good.example"
    asked = client.options(CHAT, headers=good | {"access-control-request-method": "POST"})
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert client.get("/health", headers={"origin": "https://evil.example"}).status_code == 403


def test_a_name_that_resolves_here_is_not_ours() -> None:
    """DNS rebinding: the page's own name points to this machine."""
    headers = Headers({"host": "evil.example:8080"})
    assert refusal("GET", "/slots", headers, ServerSettings()) is not None
    for host in ("localhost:8080", "127.0.0.1:8080", "[::1]:8080"):
        assert refusal("GET", "/slots", Headers({"host": host}), ServerSettings()) is None
    with_key = ServerSettings(keys=("k",))
    allowed = Headers({"host": "box.lan", "x-api-key": "k"})
    assert refusal("GET", "/slots", allowed, with_key) is None


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_what_is_local(host: str, local: bool) -> None:
    assert ServerSettings(host).local == local


def test_a_large_body_is_refused(start: Start) -> None:
    client = start(limits=Limits(body_bytes=1000))
    response = client.post(CHAT, content=b"x" * 1001)
    assert response.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b"[" * 100_000,
        b'{"a":' * 150 + b"1" + b"}" * 150,
        b'{"seed": 1' + b"0" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat", "/v1/responses", "/tokenize"])
def test_odd_bodies_are_refused(start: Start, path: str, body: bytes) -> None:
    response = start().post(path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]


def test_too_many_messages(start: Start) -> None:
    client = start(limits=Limits(messages=3))
    assert client.post(CHAT, json={"messages": MESSAGES * 4}).status_code == 400


def test_lone_surrogates_are_refused_not_answered_with_a_fault(start: Start) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    assert start().post(CHAT, content=body).status_code == 400


def test_paths_and_methods_that_do_not_exist(start: Start) -> None:
    client = start()
    for path in ("/v1/none", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/none.js"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["message"]
    response = client.get(CHAT)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert client.get("/v1/messages").json()["type"] == "error"
