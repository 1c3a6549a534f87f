"""`flashmoe pack`: a Hugging Face checkpoint becomes a packed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def pack(
    source: Annotated[Path, typer.Argument(help="Checkpoint directory or .gguf file.")],
    destination: Annotated[Path, typer.Argument(help="Directory to create.")],
    experts: Annotated[
        str,
        typer.Option(
            help="Format of experts: q4, q8, bf16, mxfp4; auto: as quantised, else q4; same."
        ),
    ] = "auto",
    dense: Annotated[
        str,
        typer.Option(help="Format of all else, likewise; auto: as quantised, else q8."),
    ] = "auto",
    group: Annotated[int, typer.Option(help="Weights per scale of q8, q4: 32, 64 or 128.")] = 64,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Pack a checkpoint for streaming. Interrupted, the same command resumes."""
    from flashmoe.cli.units import human_bytes
    from flashmoe.library import find_model
    from flashmoe.store.pack import pack_checkpoint
    from flashmoe.store.packed import PackedModel
    from flashmoe.store.plan import PackOptions

    options = PackOptions.parse(experts, dense, group)
    start = time.monotonic()
    with progress_bar("packing", quiet) as progress:
        pack_checkpoint(find_model(source), destination, options, progress)
    if not quiet:
        size = human_bytes(PackedModel.open(destination).total_bytes)
        print(f"{destination}: {size} in {time.monotonic() - start:.1f} s")


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of bytes, rate and time left on stderr; None if quiet or not on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            # The first call brings what an earlier run has done, which must not count as speed.
            if not tasks:
                tasks.append(bar.add_task(what, total=total, completed=done))
            bar.update(tasks[0], completed=done)

        yield show
