"""`flashmoe show`: where a pulled model is and where it came from."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer


def show(
    name: Annotated[str, typer.Argument(help="A name that `flashmoe list` shows.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Show place, size and origin of a pulled model."""
    from flashmoe.cli.units import human_bytes
    from flashmoe.library import Library

    entries = Library().named(name)
    if json:
        print(json_module.dumps([entry.facts() for entry in entries]))
        return
    for entry in entries:
        print(f"{entry.name}: {entry.kind}, {human_bytes(entry.nbytes())}\n  {entry.path}")
        if entry.origin is not None:
            origin = entry.origin
            print(f"  from {origin.repo}@{origin.revision}, commit {origin.commit[:12]}")
            print(f"  packed: {origin.options}" if origin.options else "  as published")
