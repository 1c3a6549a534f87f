"""`flashmoe eval tasks`: tasks of lm-evaluation-harness (the extra `lm-eval`)."""

from __future__ import annotations

import json as json_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from flashmoe.cli.eval.options import Cache, Json, Ram, Routing


def tasks(
    model: Annotated[Path, typer.Argument(help="A packed model or a checkpoint.")],
    names: Annotated[list[str], typer.Argument(metavar="TASK...", help="As arc_easy.")],
    limit: Annotated[int | None, typer.Option(help="Documents of each task at most.")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    chat: Annotated[bool, typer.Option(help="Questions through the chat template.")] = False,
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of tasks of your own.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Answers generated at once.")] = 4,
    ram: Ram = None,
    cache: Cache = None,
    routing: Routing = None,
    json: Json = False,
) -> None:
    """Run tasks of lm-evaluation-harness in this process; it downloads their data."""
    from flashmoe.cli.bench.options import engine_settings
    from flashmoe.cli.bench.output import status
    from flashmoe.errors import UsageError

    if find_spec("lm_eval") is None:
        hint = "Install it: pip install 'flashmoe[lm-eval]'"
        raise UsageError("the harness is not installed", where="eval tasks", hint=hint)
    import flashmoe
    from flashmoe.evals.lm_eval import HarnessModel, run_tasks

    engine = engine_settings(ram=ram, cache=cache, routing=routing, parallel=parallel)
    with flashmoe.load(model, **engine) as loaded, status() as show:
        found = run_tasks(
            HarnessModel(loaded, show), names, limit=limit, shots=shots, chat=chat, include=include
        )
        result = {"model": str(model), "lossy": loaded.stats.lossy, "tasks": found}
    print(json_module.dumps(result, default=str) if json else as_text(result))


def as_text(result: dict[str, Any]) -> str:
    """A line for each figure of each task."""
    from flashmoe.cli.bench.output import table

    lines = [
        (task, name, f"{value:.4f}")
        for task, figures in result["tasks"].items()
        for name, value in figures.items()
        if isinstance(value, float)
    ]
    text = table(("task", "figure", "value"), lines)
    return f"{text}\nlossy: {result['lossy']}" if result["lossy"] else text
