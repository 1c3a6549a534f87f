"""What goes over the wire: JSON, server-sent events, lines of JSON; and who still listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def dump(value: object) -> bytes:
    """JSON in UTF-8. A lone surrogate becomes an escape, which JSON allows."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + dump(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip."""
    return f": {text}\n\n".encode()


def line(value: object) -> bytes:
    """One line of newline-delimited JSON."""
    return dump(value) + b"\n"


class Json(Response):
    """A JSON body."""

    media_type = "application/json"

    def __init__(
        self, value: object, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(dump(value), status_code, headers)


class Stream(Response):
    """Sends chunks as they come; ends their generator the moment the client is gone.

    Starlette's own waits for a failing send where the server says it speaks ASGI 2.4; a client that
    leaves during a long prompt would not be noticed. on_end: called in any case, also if the
    generator never began.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        on_end: Callable[[], None],
    ) -> None:
        self.status_code, self.background = 200, None
        self.media_type, self._chunks, self._on_end = media_type, chunks, on_end
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send), self._on_end)
        finally:
            self._on_end()
            await self._chunks.aclose()

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], on_gone: Callable[[], None]
) -> T | None:
    """The result of `work`; None if the client went away first: then, after on_gone, it is
    cancelled."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        on_gone()
        return None
    finally:
        await _end(task, gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: whoever needed it has it already


async def with_keepalive(
    chunks: AsyncGenerator[bytes, None], seconds: float, remark: Callable[[], bytes]
) -> AsyncGenerator[bytes, None]:
    """The chunks, and what `remark` returns after every so many seconds without one."""
    following: asyncio.Future[bytes] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(chunks))
            while not (await asyncio.wait({following}, timeout=seconds))[0]:
                yield remark()
            try:
                chunk = following.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if following is not None:
            await _end(following)
        await chunks.aclose()
