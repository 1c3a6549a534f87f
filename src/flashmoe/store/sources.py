"""Finds the rows of a matrix, however the checkpoint stores them."""

from __future__ import annotations

from flashmoe.checkpoint import fp8
from flashmoe.checkpoint.names import Names
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
    if tensor.dtype != fp8.DTYPE:
        check_shape(tensor, shape)
        return Rows(tensor, first, rows, shape[-1], step)
    scales = names.take(f"{name}_scale_inv")
    check_shape(tensor, shape, (fp8.DTYPE,))
    check_shape(scales, (-(-shape[0] // fp8.BLOCK), -(-shape[1] // fp8.BLOCK)))
    return Fp8Rows(tensor, scales, first, rows, shape[1], step)
