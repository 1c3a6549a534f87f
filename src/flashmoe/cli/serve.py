"""flashmoe serve: a model for every client that speaks OpenAI's, Anthropic's or Ollama's API."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashmoe.errors import UsageError

if TYPE_CHECKING:
    from flashmoe.api import Model
    from flashmoe.server.served import Served
    from flashmoe.server.settings import ServerSettings
    from flashmoe.server.worker import Worker

_NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance")
# Answers that advance together: a card's passes are captured for one sequence.
_AT_ONCE = {"cpu": 4, "cuda": 1}


def _option(flag: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=help, metavar=metavar)


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            help="A packed model or a checkpoint (default: the demo model inside the package).",
        ),
    ] = None,
    host: Annotated[str, _option("--host", "Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _option("--port", "Port to listen on.")] = 8080,
    api_key: Annotated[
        list[str] | None,
        _option("--api-key", "Key that clients must send; may be repeated.", "KEY"),
    ] = None,
    api_key_file: Annotated[
        Path | None, _option("--api-key-file", "File with one such key per line.", "FILE")
    ] = None,
    cors: Annotated[
        list[str] | None,
        _option("--cors", "Origin whose pages may call; may be repeated.", "ORIGIN"),
    ] = None,
    alias: Annotated[
        str | None, _option("--alias", "The model's id in the APIs; default: its name.", "NAME")
    ] = None,
    parallel: Annotated[
        int | None,
        _option("--parallel", "Answers that advance together; default: 4, on a card 1."),
    ] = None,
    prefix_ram: Annotated[
        str | None,
        _option("--prefix-ram", "Memory for beginnings of conversations, kept.", "SIZE"),
    ] = None,
    prefix_cache: Annotated[
        Path | None,
        _option("--prefix-cache", "Folder that keeps them for the next start.", "DIR"),
    ] = None,
    prefix_disk: Annotated[
        str, _option("--prefix-disk", "Most that this folder may hold.", "SIZE")
    ] = "8G",
    queue: Annotated[int, typer.Option("--queue", min=0, help="Most requests that wait.")] = 64,
    ctx: Annotated[int | None, _option("--ctx", "Context length of each answer.")] = None,
    ram: Annotated[str | None, _option("--ram", "Hard memory limit, as 3G or 25%.", "SIZE")] = None,
    cache: Annotated[
        str | None, _option("--cache", "Memory for experts: auto, all, 0 or as 2G.", "SIZE")
    ] = None,
    prefetch: Annotated[
        str | None, _option("--prefetch", "Read likely experts ahead: auto, on, off.", "MODE")
    ] = None,
    threads: Annotated[int | None, _option("--threads", "Kernel threads.")] = None,
    experts: Annotated[
        int | None,
        _option("--experts", "Experts per token, fewer than the model's own: lossy.", "K"),
    ] = None,
    routing: Annotated[
        str | None, _option("--routing", "Lossy routing: mass=0.9, ratio=0.3 and so on.", "RULES")
    ] = None,
    isa: Annotated[
        str | None, _option("--isa", "Kernels: auto, scalar, avx2, avx512, amx, neon.", "NAME")
    ] = None,
    trace: Annotated[
        str | None, _option("--trace", "Record what routers say to a new file.", "FILE")
    ] = None,
    lock: Annotated[
        bool, typer.Option("--lock", help="Lock the resident weights in memory.")
    ] = False,
    device: Annotated[
        str, _option("--device", "cpu, cuda (one answer at a time), or auto.", "NAME")
    ] = "cpu",
    vram: Annotated[
        str | None, _option("--vram", "Hard limit of memory on the card, as 20G or 50%.", "SIZE")
    ] = None,
) -> None:
    """Serve a model over HTTP: OpenAI's, Anthropic's and Ollama's APIs (docs/server.md).

    Ctrl-C ends it.
    """
    _require_extra()
    if prefix_cache is not None and prefix_ram is None:
        raise UsageError("it needs memory too", where="--prefix-cache", hint="Add --prefix-ram 1G")
    from flashmoe.server.hosting import serve as run
    from flashmoe.server.settings import ServerSettings
    from flashmoe.sizes import parse_size

    disk_bytes = parse_size(prefix_disk, option="--prefix-disk")
    keys = [*(api_key or ()), *_keys_in(api_key_file)]
    settings = ServerSettings(host, port, tuple(keys), tuple(cors or ()))
    engine = {
        "context_length": ctx,
        "parallel": parallel,
        "prefix_ram": prefix_ram,
        "device": device,
        "vram": vram,
        "ram": ram,
        "cache": cache,
        "prefetch": prefetch,
        "threads": threads,
        "experts_per_token": experts,
        "routing": routing,
        "isa": isa,
        "lock": lock or None,
        "trace": trace,
    }
    warn_of_openness(settings)
    name = alias or (Path(model).resolve().name if model else "flashmoe-demo")
    run(
        settings,
        name,
        lambda: _loaded(model, engine, queue, prefix_cache, disk_bytes),
        lambda served: _say_ready(served, settings, engine),
    )


def _require_extra() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            "packages are missing",
            where=", ".join(missing),
            hint="Install them: pip install 'flashmoe[serve]'",
        )


def _keys_in(path: Path | None) -> list[str]:
    """The keys of a file. Raises UsageError if it has none: nobody means an open server by it."""
    from flashmoe.text.json_file import read_text

    if path is None:
        return []
    keys = read_text(path).split()
    if not keys:
        hint = "Leave the option out to ask for none"
        raise UsageError("no key in it", where=path, expected="a key per line", hint=hint)
    return keys


def _loaded(
    model: str | None, engine: dict[str, Any], queue: int, folder: Path | None, disk_bytes: int
) -> tuple[Model, Worker]:
    import flashmoe
    from flashmoe.api import device_for
    from flashmoe.server.worker import Worker

    if engine["parallel"] is None:
        engine["parallel"] = _AT_ONCE[device_for(model, engine["device"])[0]]
    loaded = flashmoe.load(model, **engine)
    prefixes = None
    if engine["prefix_ram"] is not None:
        prefixes = loaded.prefix_cache(folder, disk_bytes)
    worker = Worker(loaded, queue, prefixes)
    worker.start()
    return loaded, worker


def warn_of_openness(settings: ServerSettings) -> None:
    """Says loudly that strangers may use the server."""
    if settings.local or settings.keys:
        return
    print(
        f"flashmoe: WARNING: listening on {settings.host} without --api-key: everyone who can "
        "reach this machine can use the model and read its metrics",
        file=sys.stderr,
    )


def _say_ready(served: Served, settings: ServerSettings, engine: dict[str, Any]) -> None:
    place = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(
        f"flashmoe: serving {served.name} at http://{place}:{settings.port}/v1 "
        f"(context {served.context_length}, {engine['parallel']} at once, "
        f"{'a key is needed' if settings.keys else 'no key'})",
        file=sys.stderr,
        flush=True,
    )
