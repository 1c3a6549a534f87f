"""`flashmoe bench prefill`: speed of prompts, and the wait for the first token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    integers,
)
from flashmoe.cli.models import ModelPath

if TYPE_CHECKING:
    from flashmoe.bench.prefill import PrefillOptions
    from flashmoe.bench.record import Measurement

# Rows are printed as they come: widths are not known from the others.
_WIDTHS = (6, 7, 11, 8, 13, 9, 6)


def prefill(
    model: ModelPath,
    tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = "512,2048,8192",
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
            help="A new process with an empty cache for every run, or a filled one.",
        ),
    ] = True,
    repeat: Annotated[int, typer.Option(help="Runs per length.")] = 1,
    seed: Seed = 0,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Prefill speed and time to the first token."""
    from flashmoe.bench.prefill import PrefillOptions
    from flashmoe.bench.record import model_facts
    from flashmoe.cli.bench.output import finish
    from flashmoe.store.model import open_model

    options = PrefillOptions(
        lengths=integers(tokens, "--tokens"),
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
    facts = model_facts(open_model(model))
    # A line per length, as soon as there is one: the long ones take minutes.
    for number, length in enumerate(options.lengths):
        measurement = _measured(model, replace(options, lengths=[length]), facts)
        text = _as_text(measurement.figures, header=number == 0)
        finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _measured(model: Path, options: PrefillOptions, facts: dict[str, Any]) -> Measurement:
    """facts: of the model, for the record."""
    from flashmoe.bench.prefill import measure_prefill
    from flashmoe.bench.record import Measurement
    from flashmoe.cli.bench.output import status

    with status() as show:
        figures = measure_prefill(model, options, show)
    return Measurement(
        "prefill",
        figures,
        data=model,
        model=facts,
        ram=options.engine.get("ram"),
        start=options.start,
        options=vars(options),
    )


def _as_text(figures: dict[str, Any], header: bool) -> str:
    from flashmoe.cli.bench.output import gb_per_s, percent, row_text
    from flashmoe.cli.units import human_bytes

    names = ("tokens", "tok/s", "first token", "read", "while reading", "disk wait", "Python")
    lines = [row_text(names, _WIDTHS)] if header else []
    for prompt in figures["prompts"]:
        run = prompt["runs"][0]
        cells = (
            str(prompt["prompt_tokens"]),
            f"{prompt['tokens_per_second']['median']:.1f}",
            f"{prompt['time_to_first_token']:.2f} s",
            human_bytes(run["bytes_read"]),
            gb_per_s(run["disk_bytes_per_s_while_reading"]),
            percent(run["disk_wait_share"]),
            percent(run["python_share"]),
        )
        lines.append(row_text(cells, _WIDTHS))
    return "\n".join(lines)
