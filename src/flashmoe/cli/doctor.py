"""`flashmoe doctor`: is this machine fit, and what would make it better."""

from __future__ import annotations

import dataclasses
import json as json_module
from typing import Annotated

import typer

_INDENT = 6


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not write a file to measure the disk.")
    ] = False,
) -> None:
    """Check CPU, memory, disk, GPU, limits and versions. Exit code 1 if something fails."""
    from flashmoe.cli.terminal import printed_columns, wrapped
    from flashmoe.doctor.checks import examine
    from flashmoe.library import Library

    found, columns = [], printed_columns()
    for finding in examine(Library().root, probe=not no_probe):
        found.append(finding)
        if not json:
            text = f"{finding.status:<4}  {finding.name}: {finding.text}"
            print(wrapped(text, columns, _INDENT))
            if finding.advice:
                print(wrapped(" " * _INDENT + finding.advice, columns, _INDENT))
    if json:
        print(json_module.dumps([dataclasses.asdict(finding) for finding in found]))
    if any(finding.status == "fail" for finding in found):
        raise typer.Exit(1)
