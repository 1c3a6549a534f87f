"""The sizes on which speed depends, from a model's headers."""

from __future__ import annotations

from typing import Any

from flashmoe.forecast.model import Sizes
from flashmoe.planning import EMBEDDING, HEAD
from flashmoe.store.format import Manifest
from flashmoe.store.info import pack_info
from flashmoe.store.packed import PackedModel


def sizes_of(manifest: Manifest, config: Any, active: int) -> Sizes:
    """active: parameters that a token uses."""
    skipped = {EMBEDDING} if HEAD in manifest.tensors else set[str]()
    touched = [t.stored_bytes for name, t in manifest.tensors.items() if name not in skipped]
    layout = manifest.experts
    return Sizes(
        layers=len(manifest.layers),
        num_experts=layout.num_experts,
        experts_per_token=config.num_experts_per_tok,
        record=manifest.layer_bytes // len(manifest.layers),
        dense=sum(touched),
        active_parameters=active,
    )


def active_parameters(pack: PackedModel, config: Any, written: bool) -> int:
    """Parameters that a token uses; of a pack that is not written, by its bytes."""
    if written:
        return pack_info(pack, config.num_experts_per_tok).active_parameters
    sizes = sizes_of(pack.manifest, config, 0)
    formats = pack.manifest.dense_format, pack.manifest.experts_format
    dense, experts = (8 * 1024 / one.nbytes(8, 1024) for one in formats)
    return round(sizes.dense * dense + sizes.per_token * experts)


def disk_bytes(manifest: Manifest) -> int:
    """What the files of a pack take."""
    return sum(size for _, size in manifest.data_files().values())
