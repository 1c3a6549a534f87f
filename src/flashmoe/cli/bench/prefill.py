"""`flashmoe bench prefill`: speed of prompts, and the wait for the first token."""

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
    integers,
)


def prefill(
    model: Annotated[Path, typer.Argument(help="A packed model.")],
    tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = "512,2048,8192",
    ram: Ram = None,
    cache: Cache = None,
    threads: Threads = None,
    device: Device = None,
    vram: Vram = None,
    experts: Experts = None,
    repeat: Annotated[int, typer.Option(help="Runs per length; each starts cold.")] = 1,
    seed: Seed = 0,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Prefill speed and time to the first token."""
    from flashmoe.bench.prefill import PrefillOptions, measure_prefill
    from flashmoe.bench.record import Measurement, model_facts
    from flashmoe.cli.bench.output import finish, status
    from flashmoe.store.packed import PackedModel

    options = PrefillOptions(
        lengths=integers(tokens, "--tokens"),
        repeat=repeat,
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
        figures = measure_prefill(model, options, show)
    measurement = Measurement(
        "prefill",
        figures,
        data=model,
        model=model_facts(PackedModel.open(model)),
        ram=options.engine.get("ram"),
        start="cold",
        options=vars(options),
    )
    text = _as_text(figures)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.bench.output import gb_per_s, percent, table
    from flashmoe.cli.units import human_bytes

    header = ("tokens", "tok/s", "first token", "read", "while reading", "disk wait", "Python")
    rows = []
    for prompt in figures["prompts"]:
        run = prompt["runs"][0]
        rows.append(
            (
                prompt["prompt_tokens"],
                f"{prompt['tokens_per_second']['median']:.1f}",
                f"{prompt['time_to_first_token']:.2f} s",
                human_bytes(run["bytes_read"]),
                gb_per_s(run["disk_bytes_per_s_while_reading"]),
                percent(run["disk_wait_share"]),
                percent(run["python_share"]),
            )
        )
    return table(header, rows)
