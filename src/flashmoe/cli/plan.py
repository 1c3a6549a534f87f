"""`flashmoe plan`: how a model would run here, before it is downloaded or packed."""

from __future__ import annotations

import dataclasses
import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashmoe.forecast.outlook import Figure

_EXIT = {"good": 0, "slow": 1, "impossible": 2}


def plan(
    model: Annotated[str, typer.Argument(help="A pack, a checkpoint, or OWNER/NAME on the hub.")],
    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory limit.")] = None,
    ctx: Annotated[int | None, typer.Option(help="Context length in tokens.")] = None,
    experts: Annotated[str, typer.Option(help="Format, if not packed yet.")] = "q4",
    dense: Annotated[str, typer.Option(help="Format, if not packed yet.")] = "q8",
    group: Annotated[int, typer.Option(help="Group, if not packed yet.")] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell sizes and expected speed. Exit code 0: good, 1: slow, 2: impossible (docs/plan.md)."""
    from flashmoe.forecast.outlook import outlook
    from flashmoe.settings import EngineSettings
    from flashmoe.store.plan import PackOptions

    options = PackOptions.parse(experts, dense, group)
    found = outlook(model, EngineSettings(ram=ram, context_length=ctx), options)
    if json:
        print(json_module.dumps(dataclasses.asdict(found)))
    else:
        print(f"{model}: {found.kind}, family {found.family}")
        for figure in found.figures:
            print(f"  {figure.name:<20} {_value(figure):>10}  {figure.origin}")
        print(f"{found.verdict}: {found.reason}")
        print(f"biggest win: {found.win}")
        if found.gpu:
            print("a GPU is here: the figures are those of the CPU")
    raise typer.Exit(_EXIT[found.verdict])


def _value(figure: Figure) -> str:
    from flashmoe.cli.units import human_bytes

    if figure.unit == "bytes":
        return human_bytes(figure.value)
    if figure.unit == "bytes/s":
        return f"{human_bytes(figure.value)}/s"
    return f"{figure.value:.0%}" if figure.unit == "share" else f"{figure.value:.1f} {figure.unit}"
