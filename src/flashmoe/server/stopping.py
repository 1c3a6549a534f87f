"""How the server stops: answers come to an end, and nobody's is torn off with a traceback."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

# How long answers under way may go on after the first Ctrl-C.
_GRACE_SECONDS = 2.0
# How long the ends of cancelled answers may take to be sent; then their connections are closed.
_SENDING_SECONDS = 1.0


class StoppableServer(uvicorn.Server):
    """Ends answers through the engine: uvicorn's own way is to cancel the tasks that send them.

    SIGINT or SIGTERM: answers may go on for 2 s, then `end_answers` is called in a thread and each
    client gets the error that ends a cancelled answer. A second SIGINT ends the process at once.
    stopped_by: the first of these signals; the caller raises it again when all is closed.
    config: with timeout_graceful_shutdown None.
    """

    def __init__(self, config: uvicorn.Config, end_answers: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_answers = end_answers
        self.stopped_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop. Not uvicorn's own: it would raise the signal again before the model is closed."""
        self.stopped_by = self.stopped_by or sig
        self.should_exit = True
        if sig == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, wait for the answers, end those that last."""
        ending = asyncio.create_task(self._end())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end(self) -> None:
        await asyncio.sleep(_GRACE_SECONDS)
        await asyncio.to_thread(self._end_answers)
        await asyncio.sleep(_SENDING_SECONDS)
        for connection in list(self.server_state.connections):  # do not read, or do not send
            connection.transport.abort()
