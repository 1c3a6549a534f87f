"""`flashmoe pull`: a model from the hub, as it was published or packed while it arrives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from flashmoe.hub.pull import Meter
    from flashmoe.library import Kind


def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REV]", help="Model on the hub.")],
    pack: Annotated[
        bool, typer.Option("--pack", help="Pack while it arrives; shards are not kept.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What to call it; default: NAME.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Directory to create, instead of the models directory.")
    ] = None,
    experts: Annotated[str, typer.Option(help="With --pack: as for `flashmoe pack`.")] = "q4",
    dense: Annotated[str, typer.Option(help="With --pack: as for `flashmoe pack`.")] = "q8",
    group: Annotated[int, typer.Option(help="With --pack: as for `flashmoe pack`.")] = 64,
    files: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only weights that match; may be repeated."),
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time.")] = 8,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Download a model, verified. Interrupted, the same command goes on (docs/pull.md)."""
    from flashmoe.errors import UsageError
    from flashmoe.hub.address import Address
    from flashmoe.hub.repo import Hub, require_packages
    from flashmoe.library import Library
    from flashmoe.store.plan import PackOptions

    if pack and files:
        raise UsageError("does not go with --pack", where="--files")
    options = PackOptions.parse(experts, dense, group)
    address = Address.parse(repo)
    kind: Kind = "pack" if pack else "checkpoint"
    destination = to or Library().place(name or address.name, kind)
    require_packages()
    from flashmoe.hub.pull import Pull

    work = Pull(Hub.from_environment(), connections)
    with _bar(quiet) as meter:
        if pack:
            label = f"experts {experts}, dense {dense}, group {group}"
            work.packed(address, destination, options, label, meter)
        else:
            work.checkpoint(address, destination, files or (), meter)
    if not quiet:
        _say_done(destination, to is None)


def _say_done(destination: Path, named: bool) -> None:
    from flashmoe.store.model import is_checkpoint

    called = destination.name if named else str(destination)
    print(destination)
    print(f'flashmoe run {called} "..." runs it', file=sys.stderr)
    if is_checkpoint(destination):
        hint = f"flashmoe plan {called} tells whether it has to be packed, and what that gains"
        print(hint, file=sys.stderr)


@contextmanager
def _bar(quiet: bool) -> Iterator[Meter]:
    """A line for what arrives and one for what is packed, on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from flashmoe.hub.pull import Meter

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Meter()
        return
    columns = [TextColumn("{task.description}"), DownloadColumn(), TimeRemainingColumn()]
    if console.width >= 60:
        columns.insert(1, BarColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Meter(_shower(progress))


def _shower(progress: object) -> Callable[[Meter], None]:
    from rich.progress import Progress

    assert isinstance(progress, Progress)
    down = progress.add_task("fetch", total=None)
    packing = progress.add_task("pack", total=None, visible=False)

    def show(meter: Meter) -> None:
        progress.update(down, completed=meter.fetched, total=meter.to_fetch or None)
        total = meter.to_pack or None
        progress.update(packing, completed=meter.packed, total=total, visible=total is not None)

    return show
