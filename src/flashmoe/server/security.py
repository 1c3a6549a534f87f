"""Who may call: keys, origins, host names. One layer before all handlers: no route is forgotten."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashmoe.errors import RequestError
from flashmoe.server.errors import error_response
from flashmoe.server.service import Service
from flashmoe.server.settings import ServerSettings
from flashmoe.server.wire import Json

# Asked for without a key: whether the server lives, and the page, which holds no secrets.
OPEN_PATHS = ("/", "/health")
OPEN_FOLDER = "/page/"
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_ALLOWED = {
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "*, authorization",
    "access-control-max-age": "600",
}
_ALWAYS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Guard:
    """Refuses foreign pages and callers without a key; adds CORS headers where they were chosen."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own = _Own(headers.get("origin"), self._service, send)
        refused = refusal(scope["method"], scope["path"], headers, self._service.settings)
        if refused is not None:
            await error_response(scope["path"], refused)(scope, receive, own.send)
        elif scope["method"] == "OPTIONS" and own.allowed:
            await Json({}, headers=_ALLOWED)(scope, receive, own.send)
        else:
            await self._app(scope, receive, own.send)


class _Own:
    """Sends, with the headers that every answer has."""

    def __init__(self, origin: str | None, service: Service, send: Send) -> None:
        self._origin, self._service, self._send = origin, service, send

    @property
    def allowed(self) -> bool:
        return origin_chosen(self._origin, self._service.settings.cors)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._service.metrics.count_response(message["status"])
            headers = MutableHeaders(scope=message)
            for name, value in _ALWAYS.items():
                headers.setdefault(name, value)
            if self.allowed:
                headers["access-control-allow-origin"] = self._origin or ""
                headers.add_vary_header("origin")
        await self._send(message)


def refusal(
    method: str, path: str, headers: Headers, settings: ServerSettings
) -> RequestError | None:
    """Why a request is not let in, or None. Pure."""
    if not settings.keys and settings.local and not _local_name(headers.get("host", "")):
        # A page of a stranger whose name resolves to this machine (DNS rebinding).
        told = "this server answers to localhost only; start it with --api-key for other names"
        return RequestError(told, status=403, code="wrong_host")
    if not _origin_fits(headers, settings):
        told = "pages of this origin may not call; start the server with --cors ORIGIN"
        return RequestError(told, status=403, code="wrong_origin")
    if method == "OPTIONS" or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
        return None
    if settings.keys and not key_fits(given_keys(headers), settings.keys):
        told = "a key is needed: Authorization: Bearer KEY, or x-api-key: KEY"
        return RequestError(told, status=401, code="invalid_api_key")
    return None


def given_keys(headers: Headers) -> list[str]:
    """Keys that the client sent, under either name."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    keys = [token.strip()] if scheme.lower() == "bearer" else []
    return [*keys, *([headers["x-api-key"]] if "x-api-key" in headers else [])]


def key_fits(given: Iterable[str], keys: Iterable[str]) -> bool:
    """Whether any given key is one of ours. All pairs are compared, each in constant time."""
    pairs = [(g.encode("utf-8", "replace"), k.encode()) for g in given for k in keys]
    return sum(hmac.compare_digest(mine, ours) for mine, ours in pairs) > 0


def origin_chosen(origin: str | None, chosen: Iterable[str]) -> bool:
    """Whether --cors names the origin, or every one."""
    return origin is not None and any(c in ("*", origin) for c in chosen)


def _origin_fits(headers: Headers, settings: ServerSettings) -> bool:
    """Browsers name the page's origin in what can change or cost something: ours, or one chosen."""
    origin = headers.get("origin")
    if origin is None or origin_chosen(origin, settings.cors):
        return True
    return urlsplit(origin).netloc == headers.get("host")


def _local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in _LOCAL_HOSTS
