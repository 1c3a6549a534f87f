"""`flashmoe calibrate`: what experts see while texts run, for `flashmoe pack --calibration`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashmoe.cli.models import ModelPath


def calibrate(
    model: ModelPath,
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="File to write.")],
    text: Annotated[
        list[Path] | None, typer.Argument(help="Texts; .jsonl: chats, one a line.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the texts at most.")] = 65536,
    sample: Annotated[int, typer.Option(help="Tokens that the model itself writes.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of what it writes.")] = 0,
    ram: Annotated[str | None, typer.Option(help="Memory limit, e.g. 8G.")] = None,
) -> None:
    """Run texts through a model and record what its experts are given.

    Interrupted, the same command goes on.
    """
    import flashmoe
    from flashmoe.cli.bench.output import status
    from flashmoe.evals.calibrate import calibrate as run

    with flashmoe.load(model, ram=ram, prefetch="off") as loaded, status() as show:
        count = run(
            loaded, text or [], output, tokens=tokens, sample=sample, seed=seed, progress=show
        )
    print(f"{output}: {count} tokens")
