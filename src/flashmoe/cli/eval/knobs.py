"""`flashmoe eval knobs`: what fewer or other experts cost and save."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from flashmoe.cli.eval.options import (
    Cache,
    Journal,
    Json,
    Ram,
    ToolCalls,
    WindowCount,
    WindowTokens,
)

DEFAULT_RULES = (
    "k=6;k=5;k=4;k=3;k=2;mass=0.9;mass=0.8;mass=0.7;mass=0.6;mass=0.5;ratio=0.3;ratio=0.5;"
    "skip=0.5;skip=0.75;skip=1.0;margin=0.3;margin=0.5;margin=0.7;margin=0.9"
)


def knobs(
    model: Annotated[Path, typer.Argument(help="A packed model.")],
    text: Annotated[Path, typer.Option(help="Text file to score.")],
    rules: Annotated[
        str, typer.Option(help="Rules to try, with ; between them (docs/quality.md).")
    ] = DEFAULT_RULES,
    windows: WindowCount = 20,
    window_tokens: WindowTokens = 512,
    tool_calls: ToolCalls = None,
    ram: Ram = None,
    cache: Cache = "25%",
    journal: Journal = None,
    json: Json = False,
) -> None:
    """NLL, KL, tool calls, bytes per token and speed under lossy rules of routing."""
    from flashmoe.cli.bench.options import engine_settings
    from flashmoe.cli.bench.output import status
    from flashmoe.evals.knobs import measure_knobs
    from flashmoe.evals.measure import EvalOptions

    # Guesses are not made under rules, so none here either: bytes are compared like with like.
    engine = engine_settings(ram=ram, cache=cache, prefetch="off")
    options = EvalOptions(
        text, windows, window_tokens, tool_calls=tool_calls, directory=journal, engine=engine
    )
    chosen = [rule.strip() for rule in rules.split(";") if rule.strip()]
    with status() as show:
        rows = list(measure_knobs(model, chosen, options, show))
    print(json_module.dumps(rows) if json else _table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    from flashmoe.cli.bench.output import percent, table

    header = (
        "rule",
        "delta nll",
        "95 %",
        "kl",
        "same first",
        "calls",
        "experts",
        "kB/token",
        "hit",
    )
    lines = []
    for row in rows:
        delta = row["delta_nll"]
        lines.append(
            (
                row["rule"] or "exact",
                f"{delta['mean']:+.4f}",
                f"{delta['low']:+.4f} to {delta['high']:+.4f}",
                f"{row['kl_mean']:.4f}" if "kl_mean" in row else "-",
                percent(row.get("top1")),
                str(row["tool_calls"]["exact"]) if "tool_calls" in row else "-",
                f"{row['experts_per_token_and_layer']:.2f}",
                f"{row['bytes_per_token'] / 1e3:.0f}",
                percent(row["hit_rate"]),
            )
        )
    return table(header, lines)
