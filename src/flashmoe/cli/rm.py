"""`flashmoe rm`: deletes what was pulled."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def rm(
    name: Annotated[str, typer.Argument(help="A name that `flashmoe list` shows.")],
    kind: Annotated[
        str | None, typer.Option(help="Only this: pack, checkpoint or unfinished.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a pulled model from the models directory; nothing outside of it."""
    from flashmoe.cli.units import human_bytes
    from flashmoe.errors import UsageError
    from flashmoe.library import KINDS, Library

    if kind not in (None, *KINDS):
        raise UsageError("unknown kind", where="--kind", expected=" | ".join(KINDS), got=kind)
    library = Library()
    entries = [entry for entry in library.named(name) if kind in (None, entry.kind)]
    if not entries:
        raise UsageError("there is none of this kind", where=name, got=kind)
    for entry in entries:
        print(f"{entry.kind}  {human_bytes(entry.nbytes())}  {entry.path}")
    if not yes and not sys.stdin.isatty():
        raise UsageError("nobody to ask", where="rm", hint="Add --yes")
    if not yes and not typer.confirm("Delete?"):
        raise typer.Exit(1)
    for entry in entries:
        library.remove(entry)
