"""`flashmoe bench report`: the recorded lines as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path(
        "bench/report"
    ),
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of *.jsonl; default: the checkout's."),
    ] = None,
) -> None:
    """One HTML page of all recorded lines.

    With plots where matplotlib is installed.
    """
    from flashmoe.bench.record import RESULTS, checkout
    from flashmoe.bench.report import write_report
    from flashmoe.errors import UsageError

    folder = checkout(Path.cwd())
    if results is None and folder is None:
        hint = "Run it in a checkout of flashmoe, or name the folder with --results."
        raise UsageError("no recorded lines to show", where="--results", hint=hint)
    print(write_report(results or (folder or Path()) / RESULTS, out))
