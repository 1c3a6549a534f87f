"""The argument that names a model, for verbs that open it themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def found(given: Path) -> Path:
    """A directory or file as it is given, or the pulled model of that name."""
    from flashmoe.library import find_model

    return find_model(given)


def found_or_none(given: Path | None) -> Path | None:
    """`found`, of an option that may be left out."""
    return None if given is None else found(given)


def found_all(given: list[Path]) -> list[Path]:
    """`found`, of each."""
    return [found(path) for path in given]


ModelPaths = Annotated[
    list[Path],
    typer.Argument(callback=found_all, help="Packed models, checkpoints, or names of pulled ones."),
]
ModelPath = Annotated[
    Path,
    typer.Argument(
        callback=found, help="A packed model, a checkpoint, or the name of a pulled one."
    ),
]
