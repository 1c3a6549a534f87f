"""`flashmoe synth`: a packed model with random weights in the shape of a known one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashmoe.bench.routing import RoutingUse
    from flashmoe.bench.skew import Skew
    from flashmoe.store.format import Manifest

# Random tokens that are routed for the check: more where every expert's share is looked at.
_SPREAD_TOKENS, _SKEW_TOKENS = 48, 256
# Percentage points beyond which measured shares of picks are not what was asked for.
_WARN_POINTS = 5


def synth(
    shape: Annotated[str, typer.Argument(help="Name of a shape, e.g. qwen3-30b-a3b.")],
    dst: Annotated[Path, typer.Argument(help="Directory to write.")],
    layers: Annotated[int | None, typer.Option(help="Fewer layers than the model has.")] = None,
    distinct: Annotated[
        int | None,
        typer.Option(
            help="Experts files that the layers share; default: as many as there is room for."
        ),
    ] = None,
    skew: Annotated[
        str | None,
        typer.Option(
            metavar="CURVE",
            help="How often experts are chosen: zipf:S, or a file: a routing trace, or "
            "frequencies as CSV. Default: all alike.",
        ),
    ] = None,
    experts: Annotated[str, typer.Option(help="q4 | q3 | q2 | q8 | bf16 | mxfp4")] = "q4",
    dense: Annotated[str, typer.Option(help="q8 | q4 | q3 | q2 | bf16 | mxfp4")] = "q8",
    group: Annotated[int, typer.Option(help="Columns per group: 32, 64, 128.")] = 64,
) -> None:
    """Write a model with random weights, to measure a machine before a download."""
    import flashmoe
    from flashmoe.bench.making import make_synthetic
    from flashmoe.bench.routing import measure_routing
    from flashmoe.bench.synth import SyntheticCheckpoint
    from flashmoe.cli.pack import progress_bar
    from flashmoe.store.plan import PackOptions

    options = PackOptions.parse(experts, dense, group)
    with (
        SyntheticCheckpoint(shape, layers, skew=skew) as checkpoint,
        progress_bar("writing", quiet=False) as progress,
    ):
        manifest = make_synthetic(checkpoint, dst, options, distinct, progress)
    print(f"{dst}: {_files_text(manifest)}")
    tokens = _SPREAD_TOKENS if skew is None else _SKEW_TOKENS
    with flashmoe.load(dst, context_length=_SKEW_TOKENS, device="cpu") as model:
        use = measure_routing(model, tokens)
    print(_spread_text(use) if checkpoint.skew is None else _curve_text(use, checkpoint.skew))


def _files_text(manifest: Manifest) -> str:
    layers = len(manifest.layers)
    files = len({layer.file for layer in manifest.layers})
    if files == layers:
        return f"{layers} layers"
    return f"{layers} layers on {files} distinct expert files: layers share experts' files"


def _spread_text(use: RoutingUse) -> str:
    mean = sum(use.distinct) / len(use.distinct)
    return (
        f"routing of {use.tokens} random tokens uses {mean:.0f} experts per layer"
        f" ({min(use.distinct)} in the narrowest; uniform routing: {use.uniform:.0f})"
    )


def _curve_text(use: RoutingUse, skew: Skew) -> str:
    from flashmoe.bench.making import check_curve
    from flashmoe.bench.skew import TOP_PARTS
    from flashmoe.cli.bench.output import table

    check = check_curve(use, skew, use.experts_per_token)
    rows = [
        (f"{part:.1%}", f"{wanted:.1%}", f"{measured:.1%}")
        for part, wanted, measured in zip(TOP_PARTS, check.wanted, check.measured, strict=True)
    ]
    if 100 * check.worst > _WARN_POINTS:
        print("flashmoe: warning: routing is not skewed as asked for", file=sys.stderr)
    header = ("most wanted experts", "picks wanted", "measured")
    return f"routing of {use.tokens} random tokens, {skew.text}:\n{table(header, rows)}"
