"""`flashmoe bench concurrency`: several answers at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashmoe.cli.bench.options import (
    Cache,
    Json,
    NoRecord,
    Prefetch,
    Ram,
    Results,
    Seed,
    Threads,
    engine_settings,
    integers,
)
from flashmoe.cli.models import ModelPath

_WIDTHS = (7, 9, 9, 9, 14, 10, 10)


def concurrency(
    model: ModelPath,
    streams: Annotated[str, typer.Option(help="Answers at once, a measurement each.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="Tokens of each answer that count.")] = 48,
    long_prompt: Annotated[
        int, typer.Option(help="Tokens of a prompt that comes in beside them; 0: none.")
    ] = 0,
    ram: Ram = None,
    cache: Cache = None,
    threads: Threads = None,
    prefetch: Prefetch = None,
    seed: Seed = 0,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Tokens per second of several answers at once, and the wait between tokens."""
    from flashmoe.bench.concurrency import ConcurrencyOptions, measure_concurrency
    from flashmoe.bench.record import Measurement, model_facts
    from flashmoe.cli.bench.output import finish, status
    from flashmoe.store.model import open_model

    options = ConcurrencyOptions(
        streams=integers(streams, "--streams"),
        tokens=tokens,
        long_prompt=long_prompt,
        seed=seed,
        engine=engine_settings(ram=ram, cache=cache, threads=threads, prefetch=prefetch),
    )
    facts = model_facts(open_model(model))
    with status() as show:
        figures = measure_concurrency(model, options, show)
    measurement = Measurement(
        "concurrency",
        figures,
        data=model,
        model=facts,
        ram=options.engine.get("ram"),
        start="warm",
        options=vars(options),
    )
    finish(measurement, _as_text(figures), as_json=json, results=results, no_record=no_record)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.bench.output import percent, row_text
    from flashmoe.cli.units import human_bytes

    names = ("streams", "tok/s", "per one", "hits", "read per token", "gap", "max gap")
    lines = [row_text(names, _WIDTHS)]
    for run in figures["runs"]:
        gap = run["gap_seconds"]
        cells = (
            str(run["streams"]),
            f"{run['tokens_per_second']:.2f}",
            f"{run['tokens_per_second'] / run['streams']:.2f}",
            percent(run["hit_rate"]),
            human_bytes(run["bytes_read_per_token"]),
            f"{gap['median']:.3f} s",
            f"{gap['max']:.3f} s",
        )
        lines += [row_text(cells, _WIDTHS), *_beside_text(run.get("beside"))]
    return "\n".join(lines)


def _beside_text(beside: dict[str, Any] | None) -> list[str]:
    if beside is None:
        return []
    gap = beside["gap_seconds"]
    largest = f", gap up to {gap['max']:.2f} s" if gap else ""
    prompt = f"prompt of {beside['prompt_tokens']} tokens in {beside['prompt_seconds']:.1f} s"
    return [f"        beside a {prompt}: {beside['tokens_meanwhile']} tokens{largest}"]
