"""`flashmoe pack`: a Hugging Face checkpoint becomes a packed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from flashmoe.store.plan import PackOptions


def pack(
    source: Annotated[Path, typer.Argument(help="Checkpoint directory or .gguf file.")],
    destination: Annotated[Path, typer.Argument(help="Directory to create.")],
    experts: Annotated[
        str,
        typer.Option(
            help="Format of experts: q5, q4n, q4, q3, q2, q8, bf16, mxfp4; auto: as is, else "
            "q4; same."
        ),
    ] = "auto",
    dense: Annotated[
        str,
        typer.Option(help="Format of all else, likewise; auto: as quantised, else q8."),
    ] = "auto",
    group: Annotated[int, typer.Option(help="Weights per scale of q8 to q2: 32, 64 or 128.")] = 64,
    experts_down: Annotated[
        str | None, typer.Option(help="Format of the experts' down matrices, where another.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="File of `flashmoe calibrate`: rounds q2 to q5 better.")
    ] = None,
    experts_bits: Annotated[
        float | None,
        typer.Option(
            metavar="BITS",
            help="Of q4, q3, q2 for each layer what loses least at this size; with --calibration.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Pack a checkpoint for streaming. Interrupted, the same command resumes."""
    from flashmoe.cli.units import human_bytes
    from flashmoe.library import find_model
    from flashmoe.store.pack import pack_checkpoint
    from flashmoe.store.packed import PackedModel
    from flashmoe.store.plan import PackOptions

    options = PackOptions.parse(experts, dense, group, experts_down, experts_bits=experts_bits)
    start = time.monotonic()
    with progress_bar("packing", quiet) as progress:
        pack_checkpoint(find_model(source), destination, options, progress, calibration=calibration)
    if not quiet:
        size = human_bytes(PackedModel.open(destination).total_bytes)
        print(f"{destination}: {size} in {time.monotonic() - start:.1f} s")
        if calibration is None:
            _print_losses(find_model(source), options)


def _print_losses(source: Path, options: PackOptions) -> None:
    """What plain rounding to 4 bits or fewer has cost."""
    from flashmoe.store.loss import losses, rounds
    from flashmoe.store.opening import open_checkpoint
    from flashmoe.store.pack import plan_pack

    with open_checkpoint(source) as checkpoint:
        for loss in losses(checkpoint, plan_pack(checkpoint, options), rounds):
            print(loss)


def _columns() -> Iterator[ProgressColumn]:
    """What the bar consists of, from left to right."""
    from rich import progress

    yield progress.TextColumn("{task.description}")
    yield progress.BarColumn()
    yield progress.DownloadColumn()
    yield progress.TransferSpeedColumn()
    yield progress.TimeRemainingColumn()


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of bytes, rate and time left on stderr; None if quiet or not on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(*_columns(), console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            # The first call brings what an earlier run has done, which must not count as speed.
            if not tasks:
                tasks.append(bar.add_task(what, total=total, completed=done))
            bar.update(tasks[0], completed=done)

        yield show
