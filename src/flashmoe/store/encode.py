"""Checkpoint bytes to weight formats: the one place that chooses the encoder."""

from __future__ import annotations

import functools

import numpy as np

from flashmoe import _native
from flashmoe.checkpoint.safetensors import ITEM_BYTES, to_float32
from flashmoe.quant import Format
from flashmoe.quant.blocks import pad_rows
from flashmoe.quant.layout import Bytes, Floats


class BadWeight(Exception):
    """A weight that no format can hold: its row and column within the rows given, its value."""

    def __init__(self, row: int, col: int, value: float) -> None:
        super().__init__(f"weight [{row}, {col}] is {value}")
        self.row, self.col, self.value = row, col, value


def encode(pool: _native.Pool, format_: Format, raw: Bytes, dtype: str, out: Bytes) -> None:
    """Rows of a checkpoint matrix -> rows in kernel layout.

    Args:
        raw: uint8 [rows, cols * itemsize] of a checkpoint dtype (BF16, F16, F32).
        out: uint8 [format_.nbytes(rows, cols)], written.

    Raises:
        BadWeight: a weight is NaN, infinite or too large for the format.
    """
    rows, cols = len(raw), raw.view(f"u{ITEM_BYTES[dtype]}").shape[1]
    source = np.ascontiguousarray(raw).reshape(-1)
    try:
        _native.encode(pool, format_.name, format_.group, source, dtype.lower(), rows, cols, out)
    except ValueError as cause:
        raise _worst(to_float32(raw, dtype)) from cause


def decode_rows(format_: Format, stored: Bytes, cols: int) -> Floats:
    """Rows of a block format, uint8 [rows, row bytes] -> float32 [rows, cols]."""
    weights = np.empty((len(stored), cols), np.float32)
    matrix = _native.Matrix(format_.name, format_.group, len(stored), cols, pad_rows(stored))
    _native.dequantize(_caller(), matrix, weights)
    return weights


@functools.cache
def _caller() -> _native.Pool:
    """A pool without threads: whoever calls works."""
    return _native.Pool(1)


def check_finite(weights: Floats) -> None:
    """Raises BadWeight for weights [rows, cols] with a NaN or infinity."""
    if not np.isfinite(weights).all():
        raise _worst(weights)


def _worst(weights: Floats) -> BadWeight:
    """The first NaN, else the largest magnitude."""
    index = int(np.abs(weights).argmax())
    row, col = divmod(index, weights.shape[1])
    return BadWeight(row, col, float(weights[row, col]))
