"""`flashmoe bench decode`: speed token by token, beside what disk and memory allow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flashmoe.cli.bench.options import (
    Cache,
    Device,
    Experts,
    Json,
    NoRecord,
    Ram,
    Results,
    Seed,
    Threads,
    Vram,
    engine_settings,
)


def decode(
    model: Annotated[Path, typer.Argument(help="A packed model.")],
    tokens: Annotated[int, typer.Option(help="Tokens per window.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt of a window.")] = 16,
    ram: Ram = None,
    cache: Cache = None,
    threads: Threads = None,
    device: Device = None,
    vram: Vram = None,
    experts: Experts = None,
    cold: Annotated[
        bool, typer.Option("--cold/--warm", help="Empty expert cache for every window, or filled.")
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
    from flashmoe.store.packed import PackedModel

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
            device=device,
            vram=vram,
        ),
    )
    with status() as show:
        figures = measure_decode(model, options, show)
    measurement = Measurement(
        "decode",
        figures,
        data=model,
        model=model_facts(PackedModel.open(model)),
        ram=options.engine.get("ram"),
        start=options.start,
        options=vars(options),
    )
    text = _as_text(figures)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.bench.output import gb_per_s, percent, phase_text, spread_text
    from flashmoe.cli.units import human_bytes

    rates, cache = figures["rates"], figures["cache"]
    lines = {
        "decode": spread_text(figures["tokens_per_second"], "tok/s"),
        "bound": f"{figures['bound_tokens_per_second']:.2f} tok/s;"
        f" reached {percent(figures['bound_fraction'])} of it",
        "hit rate": f"{percent(figures['hit_rate'])} with a cache of"
        f" {human_bytes(cache['bytes'])} ({cache['slots']} experts)",
        "per token": f"{human_bytes(figures['bytes_read_per_token'])} read,"
        f" {human_bytes(figures['bytes_touched_per_token'])} of weights used",
        "disk": f"{gb_per_s(figures['disk_bytes_per_s_while_reading'])} while reading"
        f" ({gb_per_s(rates['disk_bytes_per_s'])} by itself)",
        "memory": f"{gb_per_s(rates['memory_bytes_per_s'])} by itself",
        "ms per token": phase_text(figures["phase_ms_per_token"]),
        "Python": percent(figures["python_share"]),
    }
    return "\n".join(f"{name + ':':<14}{value}" for name, value in lines.items())
