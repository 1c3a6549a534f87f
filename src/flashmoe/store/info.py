"""Facts about a packed model, from its manifest and config alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from flashmoe.errors import PackError
from flashmoe.quant import Format
from flashmoe.store import format as fmt
from flashmoe.store.inplace import InPlaceModel
from flashmoe.store.model import StoredModel

EMBEDDING = "embed_tokens"


@dataclass(frozen=True)
class PackInfo:
    """Sizes in bytes. Bits per weight include scales, biases and padding.

    bytes_per_token: what one decoded token reads if no expert is cached. active_parameters: those
    that one token uses; of the embedding that is one row, unless it is also the head. row_bytes:
    the part of resident_bytes that stays in the file, to be read row by row, where memory is short.
    expert_bytes, parameters and what follows from them count every layer, also where a synthetic
    model's layers share experts files; expert_files: how many there are; total_bytes: on disk.
    in_place: the model is a checkpoint that was not packed. record_bytes: of the largest expert,
    for which every slot of the cache has room; slot_waste: the share of slots that smaller ones
    leave empty, on average over layers. expert_formats: layers by format, that of gate and up, then
    that of down where it is another.
    """

    family: str
    source: str
    experts_format: str
    dense_format: str
    parameters: int
    active_parameters: int
    total_bytes: int
    resident_bytes: int
    row_bytes: int
    expert_bytes: int
    bits_per_weight: float
    expert_bits_per_weight: float
    moe_layers: int
    expert_files: int
    num_experts: int
    num_experts_per_tok: int
    record_bytes: int
    slot_waste: float
    expert_formats: dict[str, int]
    bytes_per_token: int
    in_place: bool


def pack_info(model: StoredModel, num_experts_per_tok: int) -> PackInfo:
    """The facts that `flashmoe info` prints."""
    manifest, layout = model.manifest, model.manifest.experts
    layers, chosen = len(manifest.layers), num_experts_per_tok
    each = 3 * layout.hidden_size * layout.intermediate_size + layout.bias_bytes // 4
    resident = {name: _parameters(tensor) for name, tensor in manifest.tensors.items()}
    experts = layers * layout.num_experts * each
    total = sum(resident.values()) + experts
    return PackInfo(
        family=manifest.family,
        source=manifest.source_name,
        experts_format=_label(manifest.experts_format),
        dense_format=_label(manifest.dense_format),
        parameters=total,
        active_parameters=_active(resident, manifest) + layers * chosen * each,
        total_bytes=model.total_bytes,
        resident_bytes=model.resident_bytes,
        row_bytes=0 if _tied(manifest) else manifest.tensors[EMBEDDING].stored_bytes,
        expert_bytes=model.expert_bytes,
        bits_per_weight=8 * (model.resident_bytes + model.expert_bytes) / total,
        expert_bits_per_weight=8 * model.expert_bytes / experts,
        moe_layers=layers,
        expert_files=len(model.files),
        num_experts=layout.num_experts,
        num_experts_per_tok=chosen,
        record_bytes=layout.record_bytes,
        slot_waste=1 - manifest.layer_bytes / (layers * layout.record_bytes),
        expert_formats=dict(Counter(map(_formats_label, manifest.layouts.values()))),
        bytes_per_token=chosen * manifest.layer_bytes,
        in_place=isinstance(model, InPlaceModel),
    )


def _parameters(tensor: fmt.Tensor) -> int:
    if isinstance(tensor, fmt.Vector):
        return math.prod(tensor.shape)
    return tensor.rows * tensor.cols


def _active(resident: dict[str, int], manifest: fmt.Manifest) -> int:
    embedding = manifest.tensors.get(EMBEDDING)
    if not isinstance(embedding, fmt.Matrix):
        raise PackError("tensor is missing", where=fmt.MANIFEST, expected=EMBEDDING)
    unused = 0 if _tied(manifest) else (embedding.rows - 1) * embedding.cols
    return sum(resident.values()) - unused


def _tied(manifest: fmt.Manifest) -> bool:
    return "lm_head" not in manifest.tensors


def _formats_label(layout: fmt.ExpertLayout) -> str:
    return ", ".join(dict.fromkeys((_label(layout.gate_up), _label(layout.down))))


def _label(format_: Format) -> str:
    return f"{format_.name} g{format_.group}" if format_.group else format_.name
