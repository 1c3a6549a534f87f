"""`flashmoe bench decode`: speed token by token, beside what disk and memory allow."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashmoe.cli.bench.options import (
    Cache,
    Device,
    Experts,
    Json,
    Lock,
    NoRecord,
    Prefetch,
    Ram,
    Results,
    Seed,
    Threads,
    Vram,
    engine_settings,
)
from flashmoe.cli.models import ModelPath


def decode(
    model: ModelPath,
    tokens: Annotated[int, typer.Option(help="Tokens per window.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt of a window.")] = 16,
    ram: Ram = None,
    cache: Cache = None,
    threads: Threads = None,
    device: Device = None,
    vram: Vram = None,
    experts: Experts = None,
    prefetch: Prefetch = None,
    lock: Lock = False,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold/--warm",
            help="A new process with an empty cache for every window, or a filled one.",
        ),
    ] = True,
    repeat: Annotated[int, typer.Option(help="Windows.")] = 3,
    seed: Seed = 0,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Decode speed, hit rate, bytes per token, the bound."""
    from flashmoe.bench.decode import DecodeOptions, measure_decode
    from flashmoe.bench.record import Measurement, model_facts
    from flashmoe.cli.bench.output import finish, status
    from flashmoe.store.model import open_model

    options = DecodeOptions(
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        repeat=repeat,
        start="cold" if cold else "warm",
        seed=seed,
        engine=engine_settings(
            ram=ram,
            cache=cache,
            threads=threads,
            experts_per_token=experts,
            prefetch=prefetch,
            device=device,
            vram=vram,
            lock=lock or None,
        ),
    )
    with status() as show:
        figures = measure_decode(model, options, show)
    measurement = Measurement(
        "decode",
        figures,
        data=model,
        model=model_facts(open_model(model)),
        ram=options.engine.get("ram"),
        start=options.start,
        options=vars(options),
    )
    text = _as_text(figures)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.bench.output import gb_per_s, number, percent, phase_text, spread_text
    from flashmoe.cli.units import human_bytes

    rates, cache = figures["rates"], figures["cache"]
    while_reading = figures["disk_bytes_per_s_while_reading"]
    of_disk = None if while_reading is None else while_reading / rates["disk_bytes_per_s"]
    files, layers = figures["expert_files"], figures["layers"]
    shared = f" on {files} distinct expert files" if files < layers else ""
    lines = {
        "model": f"{layers} layers{shared}, {figures['experts_per_token']} experts per token",
        "decode": spread_text(figures["tokens_per_second"], "tok/s"),
        "bound": f"{figures['bound_tokens_per_second']:.2f} tok/s;"
        f" reached {percent(figures['bound_fraction'])} of it",
        "hit rate": f"{percent(figures['hit_rate'])} with a cache of"
        f" {human_bytes(cache['bytes'])} ({cache['slots']} experts)",
        "per token": f"{human_bytes(figures['bytes_read_per_token'])} read,"
        f" {human_bytes(figures['bytes_touched_per_token'])} of weights used",
        "disk": f"{gb_per_s(while_reading)} while reading, {percent(of_disk)} of"
        f" {gb_per_s(rates['disk_bytes_per_s'])} by itself",
        "prefetch": f"{percent(figures['prefetched_share'])} of the misses guessed,"
        f" {human_bytes(figures['prefetch_wasted_per_token'])} per token read in vain",
        "disk CPU": f"{number(figures['cpu_ms_per_gb'])} ms per GB,"
        f" checksums {number(figures['checksum_ms_per_gb'])}",
        "memory": f"{gb_per_s(rates['memory_bytes_per_s'])} by itself",
        "ms per token": phase_text(figures["phase_ms_per_token"]),
        "Python": percent(figures["python_share"]),
    }
    return "\n".join(f"{name + ':':<14}{value}" for name, value in lines.items())
