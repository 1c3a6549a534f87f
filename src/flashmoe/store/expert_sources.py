"""Where the weights of routed experts lie, in each layout that checkpoints use. Pure."""

from __future__ import annotations

from flashmoe.checkpoint import mxfp4
from flashmoe.checkpoint.names import Names
from flashmoe.checkpoint.safetensors import Tensor as SourceTensor
from flashmoe.errors import ConfigError
from flashmoe.models.specs import ExpertsSpec
from flashmoe.store.row_sources import Columns, Mxfp4Rows, Rows, RowSource, check_shape
from flashmoe.store.sources import take_rows

Matrices = tuple[RowSource, RowSource, RowSource]  # gate [I, H], up [I, H], down [H, I]


def expert_matrices(spec: ExpertsSpec, names: Names) -> list[Matrices]:
    """Gate, up and down of each expert of a layer."""
    blocks = names.find(f"{spec.fused_gate_up}_blocks") if spec.paired else None
    if blocks is not None:
        return _mxfp4(spec, blocks, names)
    fused = names.find(spec.fused_gate_up)
    stacked = _stacked_name(spec, names)
    if stacked is not None:
        return _stacked(spec, names, stacked)
    if fused is None:
        return [_single(spec, names, expert) for expert in range(spec.num_experts)]
    fuse = _transposed if spec.paired else _halves
    return fuse(spec, fused, names.take(spec.fused_down))


def expert_biases(spec: ExpertsSpec, names: Names) -> list[tuple[tuple[Rows, ...], Rows]] | None:
    """Of each expert gate and up, in turn [2 I] or apart [I] each, and down [H]; None if the
    experts have none."""
    if not spec.gate_up_bias:
        return None
    count, hidden, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
    both = names.find(spec.gate_up_bias)
    apart = [names.take(_bias_name(name)) for name in (spec.gate, spec.up)] if both is None else []
    down = names.take(spec.down_bias if both is not None else _bias_name(spec.down))
    pairs = [both] if both is not None else apart
    for tensor in pairs:
        check_shape(tensor, (count, 2 * inner // len(pairs)))
    check_shape(down, (count, hidden))
    return [
        (tuple(Rows(one, e, 1, one.shape[1]) for one in pairs), Rows(down, e, 1, hidden))
        for e in range(count)
    ]


def _bias_name(weight: str) -> str:
    """Of the biases of all experts [E, rows], as GGUF has them."""
    return weight.replace(".experts.{expert}.", ".experts.").removesuffix(".weight") + ".bias"


def _single(spec: ExpertsSpec, names: Names, expert: int) -> Matrices:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    gate, up, down = (name.format(expert=expert) for name in (spec.gate, spec.up, spec.down))
    return (
        take_rows(names, gate, (inner, hidden), 0, inner),
        take_rows(names, up, (inner, hidden), 0, inner),
        take_rows(names, down, (hidden, inner), 0, hidden),
    )


def _stacked_name(spec: ExpertsSpec, names: Names) -> str | None:
    """What stands for ".experts.{expert}." where MLX has stacked the experts, or None."""
    for part in (".switch_mlp.", ".experts."):
        if names.has(spec.down.replace(".experts.{expert}.", part)):
            return part
    return None


def _stacked(spec: ExpertsSpec, names: Names, part: str) -> list[Matrices]:
    count, hidden, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
    gate, up, down = (
        name.replace(".experts.{expert}.", part) for name in (spec.gate, spec.up, spec.down)
    )
    return [
        (
            take_rows(names, gate, (count, inner, hidden), inner * expert, inner),
            take_rows(names, up, (count, inner, hidden), inner * expert, inner),
            take_rows(names, down, (count, hidden, inner), hidden * expert, hidden),
        )
        for expert in range(count)
    ]


def _halves(spec: ExpertsSpec, gate_up: SourceTensor, down: SourceTensor) -> list[Matrices]:
    count, hidden, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
    check_shape(gate_up, (count, 2 * inner, hidden))
    check_shape(down, (count, hidden, inner))
    return [
        (
            Rows(gate_up, 2 * inner * expert, inner, hidden),
            Rows(gate_up, 2 * inner * expert + inner, inner, hidden),
            Rows(down, hidden * expert, hidden, inner),
        )
        for expert in range(count)
    ]


def _transposed(spec: ExpertsSpec, gate_up: SourceTensor, down: SourceTensor) -> list[Matrices]:
    count, hidden, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
    check_shape(gate_up, (count, hidden, 2 * inner))
    check_shape(down, (count, inner, hidden))
    return [
        (
            Columns(gate_up, hidden * expert, 2 * inner, 0, inner, hidden, step=2),
            Columns(gate_up, hidden * expert, 2 * inner, 1, inner, hidden, step=2),
            Columns(down, inner * expert, hidden, 0, hidden, inner),
        )
        for expert in range(count)
    ]


def _mxfp4(spec: ExpertsSpec, gate_up: SourceTensor, names: Names) -> list[Matrices]:
    count, hidden, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
    down = names.take(f"{spec.fused_down}_blocks")
    gate_up_scales = names.take(f"{spec.fused_gate_up}_scales")
    down_scales = names.take(f"{spec.fused_down}_scales")
    _check_blocks(gate_up, gate_up_scales, (count, 2 * inner, hidden))
    _check_blocks(down, down_scales, (count, hidden, inner))
    return [
        (
            Mxfp4Rows(gate_up, gate_up_scales, 2 * inner * expert, inner, hidden, step=2),
            Mxfp4Rows(gate_up, gate_up_scales, 2 * inner * expert + 1, inner, hidden, step=2),
            Mxfp4Rows(down, down_scales, hidden * expert, hidden, inner),
        )
        for expert in range(count)
    ]


def _check_blocks(blocks: SourceTensor, scales: SourceTensor, shape: tuple[int, int, int]) -> None:
    groups, rest = divmod(shape[2], mxfp4.BLOCK)
    if rest:
        raise ConfigError(
            "MXFP4 does not fit this many columns",
            where=blocks.name,
            expected=f"a multiple of {mxfp4.BLOCK}",
            got=shape[2],
        )
    check_shape(blocks, (*shape[:2], groups, mxfp4.BLOCK_BYTES), ("U8",))
    check_shape(scales, (*shape[:2], groups), ("U8",))
