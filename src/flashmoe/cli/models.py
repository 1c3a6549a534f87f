"""The argument that names a model, for verbs that open it themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def found(given: Path) -> Path:
    """A directory or file as it is given, or the pulled model of that name."""
    from flashmoe.library import find_model

    return find_model(given)


ModelPath = Annotated[
    Path,
    typer.Argument(
        callback=found, help="A packed model, a checkpoint, or the name of a pulled one."
    ),
]
