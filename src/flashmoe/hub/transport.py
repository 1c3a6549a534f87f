"""HTTP as the hub speaks it: ranges, redirects to where the bytes lie, waiting when told to.

What passes (429, 5xx, a broken connection, a body that ends early) is tried again from the byte
that is missing; what does not is an error that says what to do.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx

from flashmoe import __version__
from flashmoe.errors import HubAccessError, HubError

BLOCK_BYTES = 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_MAX_REDIRECTS = 5
_TOKEN_PAGE = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Retry:
    """failures: in a row, without a byte between them, that are given up. first_wait: seconds
    before the second try; doubled each time up to longest_wait, which bounds Retry-After too."""

    failures: int = 8
    first_wait: float = 0.5
    longest_wait: float = 300.0


class Stopped(Exception):
    """The transport was closed by another thread. Never leaves the hub package."""


class _Transient(Exception):
    """Worth another try. wait: seconds that the server asked for."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        self.wait = wait
        super().__init__(what)


class Transport:
    """Connections to one hub, shared by threads.

    endpoint: as "https://huggingface.co". token: sent to the endpoint only, never to another host
    that it redirects to.
    """

    def __init__(self, endpoint: str, token: str | None, retry: Retry | None = None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token, self._retry = token, retry or Retry()
        self._client = httpx.Client(timeout=httpx.Timeout(30, connect=15), follow_redirects=False)
        self._stop = threading.Event()
        # Where the bytes of a URL lie: signed addresses that hold for minutes to hours.
        self._targets: dict[str, str] = {}

    def stop(self) -> None:
        """Ends all transfers; threads inside get Stopped at their next block."""
        self._stop.set()

    def close(self) -> None:
        """Closes the connections; no thread may be inside."""
        self.stop()
        self._client.close()

    def read(self, url: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of what a URL names. Errors as for blocks."""
        return b"".join(self.blocks(url, start, stop))

    def whole(self, url: str, limit: int) -> bytes:
        """The whole body, refused above `limit` bytes. Errors as for blocks."""
        for failures in range(1, self._retry.failures + 1):
            try:
                return self._whole(url, limit)
            except (_Transient, httpx.TransportError) as cause:
                self._wait(failures, cause, url)
        raise AssertionError("the last wait raises")

    def blocks(self, url: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of what a URL names, as they come.

        Raises:
            HubAccessError: 401, 403, 404.
            HubError: the server fails again and again, or does not answer as asked.
        """
        position, failures = start, 0
        while position < stop:
            try:
                for block in self._part(url, position, stop):
                    position, failures = position + len(block), 0
                    yield block
            except (_Transient, httpx.TransportError) as cause:
                failures += 1
                self._wait(failures, cause, url)

    def _whole(self, url: str, limit: int) -> bytes:
        data = b""
        with self._answer(url, {}) as answer:
            for block in self._body(answer):
                data += block
                if len(data) > limit:
                    expected = f"at most {limit} bytes"
                    raise HubError("answer is too large", where=url, expected=expected)
        return data

    def _part(self, url: str, start: int, stop: int) -> Iterator[bytes]:
        with self._answer(url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            _check_range(answer, url, start)
            left = stop - start
            for block in self._body(answer):
                yield block[:left]
                left -= len(block)
                if left <= 0:
                    return
        raise _Transient(f"the body ends {left} bytes early")

    def _body(self, answer: httpx.Response) -> Iterator[bytes]:
        for block in answer.iter_raw():
            if self._stop.is_set():
                raise Stopped
            yield block

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer of whoever has the bytes, with a status of success."""
        answer = self._follow(url, headers)
        try:
            yield answer
        finally:
            answer.close()

    def _follow(self, url: str, headers: dict[str, str]) -> httpx.Response:
        known = self._targets.get(url)
        target: str = known or url
        for _ in range(_MAX_REDIRECTS):
            answer = self._send(target, headers)
            if answer.is_redirect:
                target = self._redirected(target, answer)
            elif answer.status_code in (401, 403, 404, 410) and target == known:
                # The signed address has expired: ask the hub for another.
                self._targets.pop(url, None)
                known = None
                target = url
                answer.close()
            else:
                _check_status(answer, url, bool(self._token))
                if target != url:
                    self._targets[url] = target
                return answer
        raise HubError("too many redirects", where=url)

    def _send(self, target: str, headers: dict[str, str]) -> httpx.Response:
        if self._stop.is_set():
            raise Stopped
        own = {"User-Agent": f"flashmoe/{__version__}", "Accept-Encoding": "identity"}
        if self._token and _host(target) == _host(self.endpoint):
            own["Authorization"] = f"Bearer {self._token}"
        try:
            request = self._client.build_request("GET", target, headers={**own, **headers})
            return self._client.send(request, stream=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as cause:
            expected = "an address as https://huggingface.co (HF_ENDPOINT)"
            raise HubError("not an address", where=target, expected=expected) from cause
        except RuntimeError as closed:  # the client was closed meanwhile
            raise Stopped from closed

    def _redirected(self, target: str, answer: httpx.Response) -> str:
        answer.close()
        location = str(answer.headers.get("location", ""))
        try:
            found = urljoin(target, location)
            scheme = urlsplit(found).scheme
        except ValueError as cause:
            raise HubError("redirected to no address", where=target, got=repr(location)) from cause
        if scheme not in ("https", urlsplit(self.endpoint).scheme):
            raise HubError("redirected to a place that is not safe", where=target, got=found)
        return found

    def _wait(self, failures: int, cause: Exception, url: str) -> None:
        """Sleeps before the next try. Raises HubError after the last, or Stopped."""
        if self._stop.is_set():
            raise Stopped from cause
        retry, asked = self._retry, getattr(cause, "wait", None)
        what = str(cause) or type(cause).__name__
        if failures >= retry.failures or (asked or 0) > retry.longest_wait:
            later = f"in {asked:.0f} s" if asked else "when the connection is better"
            hint = f"Run the same command again {later}: it goes on where it was"
            raise HubError("the hub does not answer", where=url, got=what, hint=hint) from cause
        pause = min(retry.first_wait * 2 ** (failures - 1), retry.longest_wait)
        # Threads that failed together shall not come back together.
        pause = asked if asked is not None else pause * random.uniform(0.5, 1)
        if self._stop.wait(pause):
            raise Stopped from cause


def _host(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    return parts.hostname, parts.port


def _check_range(answer: httpx.Response, url: str, start: int) -> None:
    if answer.status_code == 200 and start == 0:
        return
    found = answer.headers.get("content-range", "")
    if answer.status_code != 206 or not found.startswith(f"bytes {start}-"):
        raise HubError(
            "the server does not give parts of files",
            where=url,
            expected=f"status 206 and bytes from {start}",
            got=f"status {answer.status_code} {found}",
        )


def _check_status(answer: httpx.Response, url: str, has_token: bool) -> None:
    """Raises what a status that is no success means."""
    status = answer.status_code
    if status < 300:
        return
    code, says = answer.headers.get("x-error-code", ""), answer.headers.get("x-error-message", "")
    answer.close()
    got = f"status {status}" + (f": {says[:200]}" if says else "")
    if status in _TRANSIENT:
        raise _Transient(got, _retry_after(answer))
    if status in (401, 403, 404):
        what, hint = _denied(status, code, has_token)
        raise HubAccessError(what, where=url, got=got, hint=hint)
    changed = "The file may have changed: run the command again" if status == 416 else None
    raise HubError("the hub refuses", where=url, got=got, hint=changed)


def _denied(status: int, code: str, has_token: bool) -> tuple[str, str]:
    """What is wrong and what to do about a 401, 403 or 404."""
    if code == "GatedRepo":
        todo = "wait for approval" if has_token else f"set HF_TOKEN ({_TOKEN_PAGE})"
        return (
            "access to this model must be granted",
            f"Ask for it on the model's page, then {todo}",
        )
    if code == "RevisionNotFound":
        return "no such revision", "Name a branch, tag or commit after @"
    if code == "EntryNotFound" or (status == 404 and code != "RepoNotFound"):
        return "no such file on the hub", "Check the repository's files"
    if has_token:
        return "no such model, or not for this token", "Check the name and the token's rights"
    todo = f"Check the name; for a private or gated model set HF_TOKEN ({_TOKEN_PAGE})"
    return "no such model, or it needs a token", todo


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
