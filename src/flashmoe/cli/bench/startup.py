"""`flashmoe bench startup`: how long until a model is open and answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashmoe.cli.bench.options import (
    Cache,
    Json,
    NoRecord,
    Ram,
    Results,
    Threads,
    engine_settings,
)
from flashmoe.cli.models import ModelPath


def startup(
    model: ModelPath,
    ram: Ram = None,
    cache: Cache = None,
    threads: Threads = None,
    cold: Annotated[
        bool, typer.Option("--cold/--warm", help="Drop the model from the page cache, or not.")
    ] = True,
    repeat: Annotated[int, typer.Option(help="Runs, each a new process.")] = 3,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Time to open a model, by part, and to its first token."""
    from flashmoe.bench.record import Measurement, model_facts
    from flashmoe.bench.startup import StartupOptions, measure_startup
    from flashmoe.cli.bench.output import finish, status
    from flashmoe.store.model import open_model

    engine = engine_settings(ram=ram, cache=cache, threads=threads)
    options = StartupOptions(repeat=repeat, start="cold" if cold else "warm", engine=engine)
    with status() as show:
        figures = measure_startup(model, options, show)
    measurement = Measurement(
        "startup",
        figures,
        data=model,
        model=model_facts(open_model(model)),
        ram=engine.get("ram"),
        start=options.start,
        options=vars(options),
    )
    text = _as_text(figures)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.units import human_bytes

    size, resident = figures["pack_bytes"], figures["resident_bytes"]
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in figures["parts"].items())
    lines = {
        "model": f"{human_bytes(size)} in {figures['layers']} layers"
        f" on {figures['expert_files']} distinct expert files",
        "help": f"{figures['help_seconds']:.2f} s for flashmoe --help",
        "open": f"{figures['open_seconds']:.2f} s,"
        f" {figures['open_seconds_but_weights']:.2f} s without the"
        f" {human_bytes(resident)} of resident weights",
        "parts": f"{parts} s",
        "reading": f"weights {figures['resident_bytes_per_s'] / 1e9:.2f} GB/s;"
        f" disk {figures['disk_bytes_per_s'] / 1e9:.2f} GB/s,"
        f" taking memory {figures['fresh_memory_bytes_per_s'] / 1e9:.2f} GB/s",
        "first token": f"{figures['first_token_seconds']:.2f} s after that,"
        f" {human_bytes(figures['first_token_bytes_read'])} read",
    }
    return "\n".join(f"{name + ':':<14}{value}" for name, value in lines.items())
