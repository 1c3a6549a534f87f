"""The row-interleaved kernel layout that all formats share. Pure NumPy; the truth for the kernels.

A matrix [rows, cols] is cut into blocks of 8 rows (the last one padded with zero rows). Within a
block, the rows are interleaved in units of 4 bytes: unit u of row 0, unit u of row 1, … row 7, then
unit u + 1, so that one 32-byte load holds the same columns of 8 rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS = 8
UNIT = 4

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def row_blocks(rows: int) -> int:
    """Number of 8-row blocks that hold `rows` rows."""
    return -(-rows // ROWS)


def pad_rows(w: Floats) -> Floats:
    """w [rows, cols] with zero rows added up to a multiple of 8."""
    missing = row_blocks(w.shape[0]) * ROWS - w.shape[0]
    return np.pad(w, ((0, missing), (0, 0))) if missing else w


def interleave(rows: Bytes) -> Bytes:
    """[blocks * 8, n * 4] bytes, row-major -> [blocks, n, 8, 4]."""
    blocks, n = rows.shape[0] // ROWS, rows.shape[1] // UNIT
    return np.ascontiguousarray(rows.reshape(blocks, ROWS, n, UNIT).transpose(0, 2, 1, 3))


def deinterleave(units: Bytes) -> Bytes:
    """Inverse of interleave: [blocks, n, 8, 4] -> [blocks * 8, n * 4]."""
    blocks, n = units.shape[:2]
    return np.ascontiguousarray(units.transpose(0, 2, 1, 3)).reshape(blocks * ROWS, n * UNIT)


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """float32 -> bfloat16 bits, rounded to nearest even. Finite input only."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Floats:
    """bfloat16 bits -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
