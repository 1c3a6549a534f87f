"""What a pack loses: the rounding errors of a sample of the matrices that it stores otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flashmoe import _native
from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.safetensors import to_float32
from flashmoe.quant import Format
from flashmoe.quant.gptq import CALIBRATED
from flashmoe.store import format as fmt
from flashmoe.store.plan import EXACT, EncodeMatrix, PackPlan
from flashmoe.store.row_sources import Columns, Rows, RowSource, Transposed
from flashmoe.store.sources import exact_format
from flashmoe.store.stream import encoded_rows, read_rows

# Two blocks of rows of so many matrices of a kind: a hundred thousand weights and more.
SAMPLE_ROWS = 16
SAMPLE_MATRICES = 32

Chosen = Callable[[EncodeMatrix], bool]


@dataclass(frozen=True)
class Loss:
    """Matrices of one kind that are rounded.

    part: "experts" or "dense". source: the format or type that they have in the checkpoint.
    relative_rms: the root of the sum of squared errors over that of squared weights. sampled:
    matrices looked at.
    """

    part: str
    source: str
    format: Format
    relative_rms: float
    sampled: int

    def __str__(self) -> str:
        group = f" g{self.format.group}" if self.format.group else ""
        return (
            f"{self.part}: {self.source} becomes {self.format.name}{group}, relative RMS error"
            f" {self.relative_rms:.2%} ({self.sampled} matrices sampled)"
        )


def converts(part: EncodeMatrix) -> bool:
    """Whether a quantised matrix is stored in a format that does not keep its weights."""
    others = (source for source in part.sources if exact_format(source) != part.format)
    return not part.copies and any(_quantised(source) for source in others)


def rounds(part: EncodeMatrix) -> bool:
    """Whether a matrix that is not quantised is stored in 4 bits or fewer."""
    return part.format.name in CALIBRATED and not part.copies and not converts(part)


def losses(checkpoint: Source, plan: PackPlan, chosen: Chosen = converts) -> tuple[Loss, ...]:
    """Of the chosen matrices by kind, those that lose anything, in the order of the pack.

    Calibrated experts are not looked at: their weights are not meant to be near.

    Raises:
        NonFiniteError: a sampled weight is NaN, infinite or beyond bf16.
        StorageError: reading failed.
    """
    kinds: dict[tuple[str, str, Format], list[EncodeMatrix]] = {}
    for where, part in _matrices(plan):
        if chosen(part):
            kinds.setdefault((where, _source(part), part.format), []).append(part)
    found = (
        Loss(*kind, _relative_rms(checkpoint, _spread(parts)), len(_spread(parts)))
        for kind, parts in kinds.items()
    )
    return tuple(loss for loss in found if loss.relative_rms)


def _quantised(source: RowSource) -> bool:
    while isinstance(source, Transposed):
        source = source.source
    return not isinstance(source, Rows | Columns)


def _matrices(plan: PackPlan) -> Iterator[tuple[str, EncodeMatrix]]:
    for item in plan.items:
        dense = item.file == fmt.RESIDENT
        if isinstance(item.parts, tuple) and (dense or not plan.manifest.calibration):
            for part in item.parts:
                if isinstance(part, EncodeMatrix):
                    yield "dense" if dense else "experts", part


def _source(part: EncodeMatrix) -> str:
    """Formats or types of a matrix's sources."""
    found = dict.fromkeys(
        exact.name if (exact := exact_format(source)) not in (None, EXACT) else source.tensor.dtype
        for source in part.sources
    )
    return ", ".join(found)


def _spread(parts: Sequence[EncodeMatrix]) -> Sequence[EncodeMatrix]:
    """Some of them, from the first to the last."""
    count = min(len(parts), SAMPLE_MATRICES)
    return [parts[i * len(parts) // count] for i in range(count)]


def _relative_rms(checkpoint: Source, parts: Sequence[EncodeMatrix]) -> float:
    pool, error, weight = _native.Pool(1), 0.0, 0.0
    for part in parts:
        rows = part.rows
        if not any(source.at_once for source in part.sources):
            rows = min(rows, SAMPLE_ROWS)
        before = to_float32(read_rows(checkpoint, part, 0, rows), part.sources[0].dtype)
        stored = encoded_rows(pool, checkpoint, part, 0, rows)
        after = part.format.decode(stored, rows, part.cols)
        error += float(np.square(after - before, dtype=np.float64).sum())
        weight += float(np.square(before, dtype=np.float64).sum())
    return math.sqrt(error / weight) if weight else 0.0
