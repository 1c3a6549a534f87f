"""`flashmoe plan`: how a model would run here, before it is downloaded or packed."""

from __future__ import annotations

import dataclasses
import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashmoe.forecast.figures import Comparison, Figure, Outlook

_EXIT = {"good": 0, "slow": 1, "impossible": 2}
# Narrower terminals have no room for where a figure is from beside it.
_WIDE = 72


def plan(
    model: Annotated[str, typer.Argument(help="A pack, a checkpoint, or OWNER/NAME on the hub.")],
    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory limit.")] = None,
    ctx: Annotated[int | None, typer.Option(help="Context length in tokens.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    card: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A card that is not here, as 'RTX 4090'; with --vram."),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory limit on the card; of one that is not here its memory."
        ),
    ] = None,
    experts: Annotated[str, typer.Option(help="Format, if not packed yet.")] = "q4",
    dense: Annotated[str, typer.Option(help="Format, if not packed yet.")] = "q8",
    group: Annotated[int, typer.Option(help="Group, if not packed yet.")] = 64,
    rates: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Of disk and memory: auto (recorded, else measured), measure, or assume.",
        ),
    ] = "auto",
    trace: Annotated[
        Path | None,
        typer.Option(help="A routing trace of this model; its hit rates count (docs/traces.md)."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell sizes and expected speed. Exit code 0: good, 1: slow, 2: impossible (docs/plan.md)."""
    from flashmoe.bench.traces import read_trace
    from flashmoe.cli.terminal import printed_columns, wrapped
    from flashmoe.errors import UsageError
    from flashmoe.forecast.outlook import Basis, outlook
    from flashmoe.settings import EngineSettings, environment
    from flashmoe.store.plan import PackOptions

    if card is not None and device not in (None, "cuda"):
        raise UsageError(f"does not go with --device {device}", where="--card")
    device = device or (None if card is None else "cuda")
    given = {"ram": ram, "device": device, "vram": vram, "context_length": ctx}
    chosen = environment() | {name: value for name, value in given.items() if value is not None}
    basis = Basis(
        settings=EngineSettings(**chosen),  # type: ignore[arg-type]
        card=card,
        options=PackOptions.parse(experts, dense, group),
        rates=rates,
        trace=None if trace is None else read_trace(trace),
    )
    found = outlook(model, basis)
    columns = printed_columns()
    if json:
        print(json_module.dumps(dataclasses.asdict(found)))
    else:
        for line, indent in _lines(model, found, columns):
            print(wrapped(line, columns, indent))
    raise typer.Exit(_EXIT[found.verdict])


def _lines(model: str, found: Outlook, columns: int) -> Iterator[tuple[str, int]]:
    """Each line, and how far its continuation is indented."""
    yield f"{model}: {found.kind}, family {found.family}", 2
    yield f"device: {found.device}, {found.device_reason}", 2
    for figure in found.figures:
        yield from _figure_lines(figure, 0 < columns < _WIDE)
    if found.in_place is not None:
        yield _in_place(found.in_place), 2
    yield f"{found.verdict}: {found.reason}", 2
    yield f"biggest win: {found.win}", 2


def _figure_lines(figure: Figure, narrow: bool) -> Iterator[tuple[str, int]]:
    row = f"  {figure.name:<20} {_value(figure):>10}"
    if not narrow:
        yield f"{row}  {_origin(figure)}", 4
        return
    yield row, 4
    if figure.note or figure.origin not in ("header", "estimated"):
        yield f"    {_origin(figure)}", 4


def _origin(figure: Figure) -> str:
    if figure.origin == "recorded":
        return f"measured {figure.note}"
    return f"{figure.origin}, {figure.note}" if figure.note else figure.origin


def _in_place(found: Comparison) -> str:
    from flashmoe.cli.units import human_bytes

    if found.obstacle:
        return f"in place: no, {found.obstacle}"
    extra = found.read_bytes / found.expert_bytes - 1
    return (
        f"in place: about {found.tokens_per_second:.1f} tok/s, packed {found.speedup:.1f}x that."
        f" An expert is {human_bytes(found.expert_bytes)} there, in {found.reads:.1f} reads with"
        f" {extra:.0%} on top, and costs {found.turning_ms:.1f} ms of a core to turn"
    )


def _value(figure: Figure) -> str:
    from flashmoe.cli.units import human_bytes

    if figure.unit == "bytes":
        return human_bytes(figure.value)
    if figure.unit == "bytes/s":
        return f"{human_bytes(figure.value)}/s"
    if figure.unit == "share":
        return f"{figure.value:.0%}"
    return f"{figure.value:.{0 if figure.value >= 100 else 1}f} {figure.unit}"
