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
from flashmoe.cli.models import ModelPath

DEFAULT_RULES = (
    "k=6;k=5;k=4;k=3;k=2;mass=0.9;mass=0.8;mass=0.7;mass=0.6;mass=0.5;ratio=0.3;ratio=0.5;"
    "skip=0.5;skip=0.75;skip=1.0;margin=0.3;margin=0.5;margin=0.7;margin=0.9"
)


def knobs(
    model: ModelPath,
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
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="HTML page to write."),
    ] = None,
    json: Json = False,
) -> None:
    """NLL, KL, tool calls, bytes per token and speed under lossy rules of routing."""
    from flashmoe.cli.bench.options import engine_settings
    from flashmoe.cli.bench.output import status
    from flashmoe.cli.eval.output import write_page
    from flashmoe.evals.knobs import measure_knobs
    from flashmoe.evals.measure import EvalOptions
    from flashmoe.evals.report import knobs_page

    # Guesses are not made under rules, so none here either: bytes are compared like with like.
    engine = engine_settings(ram=ram, cache=cache, prefetch="off")
    options = EvalOptions(
        text, windows, window_tokens, tool_calls=tool_calls, directory=journal, engine=engine
    )
    chosen = [rule.strip() for rule in rules.split(";") if rule.strip()]
    with status() as show:
        rows = list(measure_knobs(model, chosen, options, show))
    if output is not None:
        write_page(output, knobs_page(_about(model, options), rows))
    print(json_module.dumps(rows) if json else as_text(rows))


def as_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    from flashmoe.cli.bench.output import table
    from flashmoe.evals.report import knob_cells

    return table(*knob_cells(rows))


def _about(model: Path, options: Any) -> dict[str, str]:
    from flashmoe.evals.journal import digest

    return {
        "model": str(model),
        "text": f"{options.text.name}, sha256 {digest(options.text)}",
        "windows": f"{options.windows} of {options.window_tokens} tokens, decoded one by one",
        "cache": str(options.engine.get("cache")),
        "tool calls": "-" if options.tool_calls is None else options.tool_calls.name,
    }
