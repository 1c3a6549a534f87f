"""`flashmoe list`: what is in the models directory."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer


def list(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the models that were pulled, packed or begun."""
    from flashmoe.cli.units import human_bytes
    from flashmoe.library import Library

    library = Library()
    entries = library.entries()
    if json:
        print(json_module.dumps([entry.facts() for entry in entries]))
    elif not entries:
        print(f"nothing in {library.root}; `flashmoe pull OWNER/NAME --pack` gets a model")
    else:
        width = max(len(entry.name) for entry in entries)
        for entry in entries:
            print(f"{entry.name:<{width}}  {entry.kind:<10}  {human_bytes(entry.nbytes()):>7}")
