"""`flashmoe list`: what is in the models directory."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flashmoe.library import Entry

# Kind, size and the gaps before them.
_BESIDE_NAME = 22


def list(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the models that were pulled, packed or begun."""
    from flashmoe.cli.terminal import printed_columns, wrapped
    from flashmoe.library import Library

    library, columns = Library(), printed_columns()
    entries = library.entries()
    if json:
        print(json_module.dumps([entry.facts() for entry in entries]))
    elif not entries:
        text = f"nothing in {library.root}; `flashmoe pull OWNER/NAME --pack` gets a model"
        print(wrapped(text, columns))
    else:
        print("\n".join(_lines(entries, columns)))


def _lines(entries: Sequence[Entry], columns: int) -> Iterator[str]:
    """A line for each, or two where the terminal is too narrow for the longest name."""
    from flashmoe.cli.units import human_bytes

    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        rest = f"  {entry.kind:<10}  {human_bytes(entry.nbytes()):>7}"
        if 0 < columns <= width + _BESIDE_NAME:
            yield entry.name
            yield rest
        else:
            yield f"{entry.name:<{width}}{rest}"
