"""`flashmoe show`: where a pulled model is and where it came from."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashmoe.library import Entry


def show(
    name: Annotated[str, typer.Argument(help="A name that `flashmoe list` shows.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Show place, size and origin of a pulled model."""
    from flashmoe.cli.terminal import printed_columns, wrapped
    from flashmoe.library import Library

    entries, columns = Library().named(name), printed_columns()
    if json:
        print(json_module.dumps([entry.facts() for entry in entries]))
        return
    for line in (line for entry in entries for line in _lines(entry)):
        print(wrapped(line, columns, indent=4))


def _lines(entry: Entry) -> Iterator[str]:
    from flashmoe.cli.units import human_bytes

    yield f"{entry.name}: {entry.kind}, {human_bytes(entry.nbytes())}"
    yield f"  {entry.path}"
    if entry.origin is None:
        yield "  unfinished" if entry.kind == "unfinished" else "  not from the hub"
        return
    origin = entry.origin
    yield f"  from {origin.repo}@{origin.revision}, commit {origin.commit[:12]}"
    yield f"  packed: {origin.options}" if origin.options else "  as published"
