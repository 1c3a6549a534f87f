"""From settings to a running server: loads the model beside it, runs until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from time import time
from typing import Any

import uvicorn
from starlette.applications import Starlette

from flashmoe.api import Model
from flashmoe.errors import FlashMoeError, StorageError
from flashmoe.generate.grammar import Grammars
from flashmoe.parsers.registry import reply_format
from flashmoe.server.app import make_app
from flashmoe.server.served import Served, WorkerLike
from flashmoe.server.service import Service
from flashmoe.server.settings import ServerSettings
from flashmoe.server.stopping import StoppableServer
from flashmoe.text.json_file import read_object

log = logging.getLogger(__name__)

_BACKLOG = 1024

Load = Callable[[], tuple[Model, WorkerLike]]


def serve(
    settings: ServerSettings, name: str, load: Load, on_ready: Callable[[Served], None]
) -> None:
    """Serve until interrupted. The port is open at once; /health tells when the model is there.

    load: opens the model and starts its worker, in a thread. on_ready: told when it is done.
    Raises what `load` raised, StorageError when the port cannot be had.
    """
    service = Service(settings)
    host = _Host(service, name, load, on_ready)
    config = uvicorn.Config(
        make_app(service, host.lifespan),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        limit_concurrency=settings.limits.connections,
        server_header=False,
    )
    host.run(config)


class _Host:
    """A server and the thread that loads its model."""

    def __init__(
        self, service: Service, name: str, load: Load, on_ready: Callable[[Served], None]
    ) -> None:
        self._service, self._name, self._load, self._on_ready = service, name, load, on_ready
        self._error: FlashMoeError | None = None
        self._broken = False
        self._server: StoppableServer | None = None
        self._model: Model | None = None
        self._loader = Thread(target=self._load_model, name="flashmoe-load", daemon=True)

    def run(self, config: uvicorn.Config) -> None:
        """Until the server ends; a signal that ended it is raised again when all is closed."""
        listener = _listener(config.host, config.port)  # before the model: a taken port is told
        self._server = StoppableServer(config, self._end_answers)
        try:
            self._server.run(sockets=[listener])
        finally:
            listener.close()
            self._close()
        if self._error is not None:
            raise self._error
        if self._server.stopped_by is not None:
            signal.raise_signal(self._server.stopped_by)
        elif self._broken:
            raise RuntimeError("loading the model failed; its trace is above")

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Loads when the server starts, ends the engine when it stops."""
        self._loader.start()
        yield
        await asyncio.to_thread(self._end_answers)

    def _load_model(self) -> None:
        self._broken = True
        try:
            self._model, worker = self._load()
            self._service.served = served_model(self._name, self._model, worker)
            self._on_ready(self._service.served)
            self._broken = False
        except FlashMoeError as error:
            self._error = error
        finally:
            if self._broken and self._server is not None:
                self._server.should_exit = True

    def _end_answers(self) -> None:
        """Cancels what runs and waits; returns when the engine's thread has ended."""
        if self._service.served is not None:
            self._service.served.worker.close()

    def _close(self) -> None:
        self._end_answers()
        if self._model is not None and self._service.served is not None:
            self._model.close()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise StorageError(
            f"the server cannot listen ({error.strerror})", where=f"{host}:{port}"
        ) from error


def served_model(name: str, model: Model, worker: WorkerLike) -> Served:
    """A loaded model with its text side. Raises PackError when the pack has no tokenizer."""
    tokenizer, template = model.tokenizer, model.chat_template
    reply = reply_format(tokenizer, template)
    vocab_size = int(model.config.vocab_size)
    return Served(
        name=name,
        worker=worker,
        tokenizer=tokenizer,
        template=template,
        stop_ids=model.stop_ids,
        context_length=model.context_length,
        vocab_size=vocab_size,
        format=reply,
        grammars=Grammars(tokenizer, vocab_size, stop_ids=model.stop_ids, reply=reply),
        defaults=sampling_defaults(model.path if model.path.is_dir() else model.path.parent),
        facts=_facts(model, reply.name),
        created=int(time()),
    )


def _facts(model: Model, reply_format: str) -> dict[str, Any]:
    """What /v1/models, /api/tags and the page tell. bytes: on disk; digest: Model.fingerprint."""
    files = model.path.iterdir() if model.path.is_dir() else [model.path]
    stats = model.stats
    told = {
        "family": model.family,
        "reply_format": reply_format,
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "digest": model.fingerprint,
        "device": stats.device,
        "lossy": stats.lossy,
    }
    return {name: value for name, value in told.items() if value}


def sampling_defaults(directory: Path) -> dict[str, Any]:
    """What the model's authors advise in generation_config.json, else OpenAI's temperature of 1."""
    advised = read_object(directory / "generation_config.json")
    if advised.get("do_sample") is False:
        return {"temperature": 0.0}
    names = ("temperature", "top_p", "top_k", "min_p")
    given = {n: advised[n] for n in names if isinstance(advised.get(n), int | float)}
    return {"temperature": 1.0} | given
