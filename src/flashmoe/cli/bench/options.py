"""Options that the verbs of `flashmoe bench` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flashmoe.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, the recorded line.")]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        dir_okay=False,
        help="Where to append the line; default: the checkout's.",
    ),
]
NoRecord = Annotated[bool, typer.Option("--no-record", help="Append nothing.")]
Ram = Annotated[
    str | None, typer.Option("--ram", metavar="SIZE", help="Hard memory limit, as 3G or 25%.")
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", metavar="SIZE", help="Memory for experts: auto, all, 0 or as 2G."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="Kernel threads.")]
Experts = Annotated[
    int | None,
    typer.Option(
        "--experts",
        "--experts-per-token",
        metavar="K",
        help="Experts per token, fewer than the model's own.",
    ),
]
Prefetch = Annotated[
    str | None,
    typer.Option(
        "--prefetch",
        metavar="MODE",
        help="Read the next layer's likely experts while the disk is idle: auto, on, off.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu or cuda.")]
Vram = Annotated[
    str | None, typer.Option("--vram", metavar="SIZE", help="Hard limit of memory on the card.")
]
Hybrid = Annotated[
    bool, typer.Option("--hybrid", help="Let the CPU compute experts in RAM beside the card.")
]
Lock = Annotated[bool, typer.Option("--lock", help="Lock the resident weights in memory.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the token ids.")]


def engine_settings(**given: object) -> dict[str, Any]:
    """Settings of flashmoe.load: those that the user gave, else those of the environment."""
    from flashmoe.settings import environment

    return environment() | {name: value for name, value in given.items() if value is not None}


def integers(text: str, option: str, *, most: int | None = None) -> list[int]:
    """ "1,2,3" -> [1, 2, 3], each at least 1. Raises UsageError that names the option."""
    expected = f"numbers from 1 {'on' if most is None else f'to {most}'}, with commas between them"
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError("not numbers", where=option, expected=expected, got=text) from error
    if min(found) < 1 or (most is not None and max(found) > most):
        raise UsageError("out of range", where=option, expected=expected, got=text)
    return found
