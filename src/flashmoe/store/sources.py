"""Finds the rows of a matrix, however the checkpoint stores them."""

from __future__ import annotations

from flashmoe.checkpoint import fp8, mxfp4
from flashmoe.checkpoint.names import Names
from flashmoe.checkpoint.safetensors import E8M0, WEIGHT_TYPES
from flashmoe.checkpoint.safetensors import Tensor as SourceTensor
from flashmoe.errors import ConfigError
from flashmoe.quant import Format
from flashmoe.store.block_rows import ROWS_OF, BlockRows, GgufMxfp4Rows
from flashmoe.store.quantised import GroupedRows, Nvfp4Rows, find_quantised
from flashmoe.store.row_sources import Fp8Rows, Mxfp4Rows, Rows, RowSource, check_shape

KeptRows = GroupedRows | Nvfp4Rows | BlockRows


def exact_format(source: RowSource) -> Format | None:
    """The stored format that holds every number of a source exactly, or None."""
    if isinstance(source, KeptRows):
        return source.exact
    if isinstance(source, Mxfp4Rows | GgufMxfp4Rows):
        return Format("mxfp4", 32)
    return Format("bf16") if isinstance(source, Rows) and source.dtype == "BF16" else None


def take_rows(
    names: Names, name: str, shape: tuple[int, ...], first: int, rows: int, step: int = 1
) -> RowSource:
    """Rows of a tensor of this shape, whether its numbers are stored plainly, as FP8 or
    quantised. Of several dimensions, all but the last count as rows."""
    found = find_quantised(names, name, shape, first, rows, step)
    if found is not None:
        return found
    tensor = names.take(name)
    if tensor.dtype in ROWS_OF:
        check_shape(tensor, shape, (tensor.dtype,))
        return ROWS_OF[tensor.dtype](tensor, first, rows, shape[-1], step)
    if tensor.dtype == fp8.DTYPE:
        scales = _scales(names, name)
        check_shape(tensor, shape, (fp8.DTYPE,))
        blocks = (-(-shape[0] // fp8.BLOCK), -(-shape[1] // fp8.BLOCK))
        check_shape(scales, blocks, (*WEIGHT_TYPES, E8M0))
        return Fp8Rows(tensor, scales, first, rows, shape[1], step)
    if tensor.dtype == "I8":
        return _fp4(names, name, shape, first, rows, step)
    check_shape(tensor, shape)
    return Rows(tensor, first, rows, shape[-1], step)


def _scales(names: Names, name: str) -> SourceTensor:
    """NAME.weight_scale_inv, or, as DeepSeek-V4 has it, NAME.scale."""
    found = names.find(f"{name.removesuffix('.weight')}.scale")
    return names.take(f"{name}_scale_inv") if found is None else found


def _fp4(
    names: Names, name: str, shape: tuple[int, ...], first: int, rows: int, step: int
) -> RowSource:
    """DeepSeek-V4's experts: MXFP4 by other names, two codes in each I8 of NAME.weight."""
    weight, cols = names.take(name), shape[-1]
    scales = names.take(f"{name.removesuffix('.weight')}.scale")
    if cols % mxfp4.BLOCK:
        raise ConfigError(
            "FP4 does not fit this many columns",
            where=f"{weight.path}: {weight.name}",
            expected=f"a multiple of {mxfp4.BLOCK}",
            got=cols,
        )
    check_shape(weight, (*shape[:-1], cols // 2), ("I8",))
    check_shape(scales, (*shape[:-1], cols // mxfp4.BLOCK), (E8M0,))
    return Mxfp4Rows(weight, scales, first, rows, cols, step)
