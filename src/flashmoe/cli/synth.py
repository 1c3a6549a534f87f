"""`flashmoe synth`: a packed model with random weights in the shape of a known one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synth(
    shape: Annotated[str, typer.Argument(help="Name of a shape, e.g. qwen3-30b-a3b.")],
    dst: Annotated[Path, typer.Argument(help="Directory to write.")],
    layers: Annotated[int | None, typer.Option(help="Fewer layers than the model has.")] = None,
    experts: Annotated[str, typer.Option(help="q4 | q8 | bf16")] = "q4",
    dense: Annotated[str, typer.Option(help="q8 | q4 | bf16")] = "q8",
    group: Annotated[int, typer.Option(help="Columns per group: 32, 64, 128.")] = 64,
) -> None:
    """Write a model with random weights, to measure a machine before a download."""
    import flashmoe
    from flashmoe.bench.routing import measure_spread
    from flashmoe.bench.synth import SyntheticCheckpoint
    from flashmoe.cli.pack import progress_bar
    from flashmoe.store.pack import pack_open_checkpoint
    from flashmoe.store.plan import PackOptions

    options = PackOptions.parse(experts, dense, group)
    with (
        SyntheticCheckpoint(shape, layers) as checkpoint,
        progress_bar("writing", quiet=False) as progress,
    ):
        pack_open_checkpoint(checkpoint, dst, options, progress)
    with flashmoe.load(dst, context_length=256) as model:
        spread = measure_spread(model)
    used = sum(spread.distinct) / len(spread.distinct)
    print(
        f"{dst}: routing of {spread.tokens} random tokens uses {used:.0f} experts per layer"
        f" ({min(spread.distinct)} in the narrowest; uniform routing: {spread.uniform:.0f})"
    )
