"""Checkpoint bytes to weight formats: the one place that chooses the encoder."""

from __future__ import annotations

import numpy as np

from flashmoe.checkpoint.safetensors import to_float32
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes


class NonFiniteWeight(ValueError):
    """A weight is NaN or infinite: its row and column within the encoded rows, and its value."""

    def __init__(self, row: int, col: int, value: float) -> None:
        super().__init__(f"weight [{row}, {col}] is {value}")
        self.row, self.col, self.value = row, col, value


def encode(format_: Format, raw: Bytes, dtype: str, out: Bytes) -> None:
    """Rows of a checkpoint matrix -> rows in kernel layout.

    Args:
        raw: uint8 [rows, cols * itemsize] of a checkpoint dtype (BF16, F16, F32).
        out: uint8 [format_.nbytes(rows, cols)], written.

    Raises:
        NonFiniteWeight: names the first NaN or infinite weight.
    """
    weights = to_float32(raw, dtype)
    check_finite(weights)
    out[:] = format_.encode(weights)


def check_finite(weights: np.ndarray) -> None:
    """Raises NonFiniteWeight for the first NaN or infinity of weights [rows, cols]."""
    finite = np.isfinite(weights)
    if not finite.all():
        row, col = (int(i) for i in np.unravel_index(int(finite.argmin()), weights.shape))
        raise NonFiniteWeight(row, col, float(weights[row, col]))
