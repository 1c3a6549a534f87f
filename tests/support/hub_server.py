"""A stand-in of the hub's HTTP API: listing, ranges, redirects to a CDN, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "c0ffee" * 6 + "beef"
REPO = "someone/tiny-moe"
_SMALL = (".json", ".jinja", ".txt", ".md")


@dataclass
class Fault:
    """What happens instead of an answer, `times` times, where the path ends in `path`.

    status: of the answer; 206 for a body that is cut after `after` bytes or has a flipped bit.
    """

    path: str
    status: int = 206
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    damaged: bool = False
    on_cdn: bool = True


@dataclass
class StandIn:
    """A running hub. requests: (host, path, range, had a token) of each, in order."""

    folder: Path
    endpoint: str = ""
    cdn: str = ""
    token: str | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str, bool]] = field(default_factory=list)
    delay: float = 0.0
    ranges: bool = True
    wrong_sha: str = ""
    gated: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listing(self) -> dict[str, Any]:
        """The answer of /api/models/REPO/revision/REV?blobs=true."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {"id": REPO, "sha": COMMIT, "siblings": [self._sibling(path) for path in files]}

    def _sibling(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        entry: dict[str, Any] = {
            "rfilename": path.relative_to(self.folder).as_posix(),
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if path.suffix not in _SMALL:
            sha256 = hashlib.sha256(data).hexdigest()
            wrong = path.name == self.wrong_sha
            entry["lfs"] = {"sha256": "0" * 64 if wrong else sha256, "size": len(data)}
        return entry

    def fault(self, path: str, on_cdn: bool) -> Fault | None:
        """The fault that this request meets, counted."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and path.endswith(fault.path) and fault.on_cdn == on_cdn:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def running_hub(folder: Path, **options: Any) -> Iterator[StandIn]:
    """Serves the files of a folder as the repository REPO."""
    hub = StandIn(folder, **options)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, cdn)) for cdn in (False, True)]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{one.server_port}" for one in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: StandIn, cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            had_token = "Authorization" in self.headers
            entry = ("cdn" if cdn else "hub", path, self.headers.get("Range", ""), had_token)
            hub.requests.append(entry)
            fault = hub.fault(path, cdn)
            if fault is not None and fault.status != 206:
                self.answer(fault.status, b"", fault.headers)
            elif cdn:
                self.send_file(path.removeprefix("/cdn/"), fault)
            elif self.denied():
                return
            elif path.startswith(f"/api/models/{REPO}/revision/"):
                self.send_listing(path)
            elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
                self.resolve(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
            else:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def denied(self) -> bool:
            right = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if hub.gated and right:
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            if hub.token is not None and not right:
                return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return False

        def send_listing(self, path: str) -> None:
            if path.rpartition("/")[2] not in ("main", COMMIT):
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            self.answer(200, json.dumps(hub.listing()).encode(), {})

        def resolve(self, name: str) -> None:
            if not (hub.folder / name).is_file():
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif name.endswith(_SMALL):
                self.send_file(name, None)
            else:
                self.answer(302, b"", {"Location": f"{hub.cdn}/cdn/{name}"})

        def send_file(self, name: str, fault: Fault | None) -> None:
            data = (hub.folder / name).read_bytes()
            given = self.headers.get("Range", "") if hub.ranges else ""
            start, stop = 0, len(data)
            if given:
                first, _, last = given.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last) + 1, len(data))
            part, cut = bytearray(data[start:stop]), None
            if fault is not None:
                cut = fault.cut_after
                part[0] ^= fault.damaged
            time.sleep(hub.delay)
            span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if given else {}
            self.answer(206 if given else 200, bytes(part), span, cut)

        def answer(
            self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
        ) -> bool:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None
            return True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client was killed
                super().handle()

    return Handler
