"""`flashmoe bench card`: prefill and decode on a GPU, beside what card, bus and disk allow."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashmoe.cli.bench.options import (
    Experts,
    Hybrid,
    Json,
    NoRecord,
    Prefetch,
    Ram,
    Results,
    Seed,
    Vram,
    engine_settings,
)
from flashmoe.cli.models import ModelPath


def card(
    model: ModelPath,
    prompt: Annotated[int, typer.Option(help="Tokens of the timed prompt.")] = 4096,
    tokens: Annotated[int, typer.Option(help="Tokens per decode window.")] = 64,
    vram: Vram = None,
    ram: Ram = None,
    experts: Experts = None,
    prefetch: Prefetch = None,
    hybrid: Hybrid = False,
    repeat: Annotated[int, typer.Option(help="Prompts, and decode windows.")] = 3,
    seed: Seed = 0,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Speed on a GPU, where experts came from, the bound."""
    from flashmoe.bench.card import CardOptions, measure_card
    from flashmoe.bench.record import Measurement, model_facts
    from flashmoe.cli.bench.output import finish, status
    from flashmoe.store.model import open_model

    engine = engine_settings(
        ram=ram,
        vram=vram,
        experts_per_token=experts,
        prefetch=prefetch,
        hybrid=hybrid or None,
        device="cuda",
    )
    options = CardOptions(prompt=prompt, tokens=tokens, repeat=repeat, seed=seed, engine=engine)
    with status() as show:
        figures = measure_card(model, options, show)
    measurement = Measurement(
        "card",
        figures,
        data=model,
        model=model_facts(open_model(model)),
        ram=engine.get("ram"),
        start="warm",
        options=vars(options),
    )
    finish(measurement, _as_text(figures), as_json=json, results=results, no_record=no_record)


_HEADER = (
    *("", "tok/s", "bound by", "reached", "copied", "disk", "found on card/ram/disk"),
    "time on card/bus/disk/host",
)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.bench.output import gb_per_s, table

    rates = figures["rates"]
    rows = [_cells(kind, row) for kind in ("prefill", "decode") for row in figures[kind]]
    rate_line = (
        f"{rates['card']}: copy {gb_per_s(rates['copy_bytes_per_s'])},"
        f" host to card {gb_per_s(rates['host_to_card_bytes_per_s'])},"
        f" disk {gb_per_s(rates['disk_bytes_per_s'])}"
    )
    lines = [rate_line, table(_HEADER, rows)]
    return "\n".join([*lines, figures["hybrid"]] if figures["hybrid"] else lines)


def _cells(kind: str, row: dict[str, Any]) -> tuple[str, ...]:
    """A prompt or a window of decode steps as a row of the table."""
    from flashmoe.cli.bench.output import gb_per_s, percent

    share = row["share"] or {}
    return (
        kind,
        f"{row['tokens_per_second']:.1f}",
        row["bound"],
        percent(row["bound_fraction"]),
        gb_per_s(row["copied_bytes"] / row["seconds"]),
        gb_per_s(row["disk_bytes"] / row["seconds"]),
        "/".join(percent(value) for value in share.values()) or "all on the card",
        "/".join(percent(value) for value in row["time_share"].values()),
    )
