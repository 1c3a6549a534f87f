"""Makes a synthetic pack on the disk that there is, and checks how it routes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from flashmoe.bench.routing import RoutingUse
from flashmoe.bench.skew import Skew, top_shares
from flashmoe.bench.synth import SyntheticCheckpoint
from flashmoe.errors import StorageError, UsageError
from flashmoe.files import storage_errors
from flashmoe.store.pack import Progress, pack_open_checkpoint, plan_pack

if TYPE_CHECKING:
    from flashmoe.store.format import Manifest
    from flashmoe.store.plan import PackOptions, PackPlan

# Left free beside a pack: a full disk is slow, and others want to write, too.
_MARGIN_SHARE: Final = 0.05
_MARGIN_BYTES: Final = 1 << 30


def make_synthetic(
    checkpoint: SyntheticCheckpoint,
    destination: Path,
    options: PackOptions,
    distinct: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the pack of a synthetic checkpoint.

    distinct: experts files to write, which the layers share; None: one per layer, or as many as
    the disk has room for. Raises UsageError, StorageError.
    """
    if destination.exists():
        raise UsageError("destination already exists", where=destination)
    plan = plan_pack(checkpoint, options)
    layers = len(plan.manifest.layers)
    if distinct is not None and not 1 <= distinct <= layers:
        expected = f"1 to {layers}"
        raise UsageError("bad number of files", where="--distinct", expected=expected, got=distinct)
    if distinct is None:
        distinct = _files_with_room(plan, destination)
    # A pack in which nothing is shared is the same with and without the option.
    chosen = replace(options, distinct=distinct if distinct < layers else None)
    return pack_open_checkpoint(checkpoint, destination, chosen, progress)


def _files_with_room(plan: PackPlan, destination: Path) -> int:
    """As many experts files as fit; all of them where an unfinished pack is to be resumed."""
    layers, layout = len(plan.manifest.layers), plan.manifest.experts
    file_bytes = layout.num_experts * layout.record_bytes
    others = plan.total_bytes - layers * file_bytes
    with storage_errors("cannot query free space", destination.parent):
        free = shutil.disk_usage(destination.parent).free
    room = int(free * (1 - _MARGIN_SHARE)) - _MARGIN_BYTES - others
    if room < file_bytes:
        raise StorageError(
            "not enough disk space for one layer's experts",
            where=destination.parent,
            expected=f"{free - room + file_bytes} bytes free",
            got=free,
            hint="Choose another folder, or a smaller shape",
        )
    return min(layers, room // file_bytes)


@dataclass(frozen=True)
class CurveCheck:
    """Share of picks that the most wanted experts take (flashmoe.bench.skew.TOP_PARTS of them),
    mean over layers: as asked for, and as counted."""

    wanted: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest difference."""
        return max(abs(a - b) for a, b in zip(self.wanted, self.measured, strict=True))


def check_curve(use: RoutingUse, skew: Skew, chosen: int) -> CurveCheck:
    """What a model's routing is beside what was asked for."""
    wanted, measured = [], []
    for place, uses in enumerate(use.counts):
        frequencies = skew.frequencies(use.layers[place], chosen)
        order: Sequence[int] = np.argsort(-frequencies, kind="stable").tolist()
        wanted.append(top_shares(frequencies, order))
        measured.append(top_shares(uses, order))
    return CurveCheck(_mean(wanted), _mean(measured))


def _mean(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(np.mean(rows, axis=0).tolist())
