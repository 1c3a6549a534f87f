"""bf16: the weight itself, rounded to bfloat16. Block: units of 2 columns, 16 bytes per column."""

from __future__ import annotations

import numpy as np

from flashmoe.quant import layout
from flashmoe.quant.layout import Bytes, Floats

NAME = "bf16"
GROUPS = (0,)


def step(group: int) -> int:
    """Rows have a multiple of that many columns."""
    return 2


def row_bytes(cols: int, group: int) -> int:
    """Stored bytes per row; cols must be even."""
    return 2 * cols


def encode(w: Floats, group: int) -> Bytes:
    """w [rows, cols] -> bytes in kernel layout."""
    bits = layout.to_bf16(layout.pad_rows(w))
    return layout.interleave(bits.view(np.uint8)).reshape(-1)


def decode(data: Bytes, rows: int, cols: int, group: int) -> Floats:
    """Inverse of encode -> float32 [rows, cols]."""
    units = data.reshape(layout.row_blocks(rows), cols // 2, layout.ROWS, layout.UNIT)
    return layout.from_bf16(layout.deinterleave(units).view(np.uint16))[:rows]
