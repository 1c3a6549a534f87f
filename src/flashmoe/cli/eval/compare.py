"""`flashmoe eval compare`: several packs side by side, as a page and as JSON."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flashmoe.cli.eval.options import (
    Cache,
    HeldTo,
    Journal,
    Json,
    NoiseFloor,
    Ram,
    Reference,
    Routing,
    Stride,
    Text,
    ToolCalls,
    WindowCount,
    WindowTokens,
)
from flashmoe.cli.models import ModelPaths


def compare(
    models: ModelPaths,
    text: Text = None,
    windows: WindowCount = 40,
    window_tokens: WindowTokens = 512,
    stride: Stride = None,
    tool_calls: ToolCalls = None,
    held_to: HeldTo = None,
    reference: Reference = None,
    noise_floor: NoiseFloor = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="HTML page to write."),
    ] = None,
    journal: Journal = None,
    ram: Ram = None,
    cache: Cache = None,
    routing: Routing = None,
    json: Json = False,
) -> None:
    """Measure several models alike: a page with tables and plots, and JSON.

    Warns where a pack was calibrated on what it is measured on.
    """
    from flashmoe.cli.bench.options import engine_settings
    from flashmoe.cli.bench.output import status
    from flashmoe.cli.eval.output import write_page
    from flashmoe.evals.compare import compare as run
    from flashmoe.evals.measure import EvalOptions
    from flashmoe.evals.report import comparison_page

    engine = engine_settings(ram=ram, cache=cache, routing=routing)
    options = EvalOptions(
        text, windows, window_tokens, stride, tool_calls, held_to, journal, engine
    )
    with status() as show:
        report = run(models, options, show, reference, noise=noise_floor)
    if output is not None:
        write_page(output, comparison_page(report))
    print(json_module.dumps(report) if json else as_text(report))
    for warning in report["warnings"]:
        print(f"flashmoe: WARNING: {warning}", file=sys.stderr)


def as_text(report: dict[str, Any]) -> str:
    """A line for each model."""
    from flashmoe.cli.bench.output import percent, table

    header = ["model", "bits/weight", "MB/token", "nll", "delta nll", "kl", "same first", "exact"]
    lines = []
    for row in report["models"]:
        calls, delta = row.get("tool_calls"), row.get("delta_nll")
        lines.append(
            [
                row["name"],
                f"{row['bits_per_weight']:.3f}",
                f"{row['bytes_per_token'] / 1e6:.2f}",
                f"{row['nll']:.4f}" if "nll" in row else "-",
                f"{delta['mean']:+.4f}" if delta else "-",
                f"{row['kl_mean']:.4f}" if delta else "-",
                percent(row.get("top1")),
                f"{calls['exact']}/{calls['cases']}" if calls else "-",
            ]
        )
    return table(header, lines)
