"""`flashmoe verify`: every checksum of a packed model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from flashmoe.cli.models import ModelPath


def verify(
    model: ModelPath,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print damages only.")] = False,
) -> None:
    """Compare all bytes of a packed model with their checksums; exit code 1 if any is damaged.

    A checkpoint that runs in place has no checksums: its headers, shapes and sizes are checked.
    """
    from flashmoe.cli.pack import progress_bar
    from flashmoe.store.inplace import InPlaceModel
    from flashmoe.store.model import is_checkpoint
    from flashmoe.store.verify import verify as verify_pack

    if is_checkpoint(model):
        InPlaceModel.open(model)
        _report_checkpoint(model, json, quiet)
        return
    with progress_bar("verifying", quiet or json) as progress:
        damages = [str(damage) for damage in verify_pack(model, progress)]
    if json:
        print(json_module.dumps({"sound": not damages, "damages": damages}))
    else:
        for damage in damages:
            print(damage)
        if not damages and not quiet:
            print(f"{model}: sound")
    if damages:
        raise typer.Exit(1)


def _report_checkpoint(model: Path, json: bool, quiet: bool) -> None:
    if json:
        print(json_module.dumps({"sound": True, "damages": [], "checksums": False}))
    elif not quiet:
        print(f"{model}: headers, shapes and sizes are sound; a checkpoint has no checksums")
