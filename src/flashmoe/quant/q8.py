"""q8: symmetric 8-bit groups, w = scale * code with code in [-127, 127] and a float32 scale.

A group of G columns of a block: G / 4 units (8 rows x 4 codes), then 8 scales: 8 * G + 32 bytes.
scale = max|w| / 127, code = clip(round-half-even(w / scale)); a group of zeros has scale 0. The
clip acts only on groups so small that the scale is denormal.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant import layout
from flashmoe.quant.layout import Bytes, Floats

NAME = "q8"
GROUPS = (32, 64, 128)


def step(group: int) -> int:
    """Rows have a multiple of that many columns."""
    return group


def row_bytes(cols: int, group: int) -> int:
    """Stored bytes per row; cols must be a multiple of group."""
    return cols // group * (group + 4)


def encode(w: Floats, group: int) -> Bytes:
    """w [rows, cols] -> bytes in kernel layout."""
    w = layout.pad_rows(w)
    grouped = w.reshape(w.shape[0], -1, group)
    scale = np.abs(grouped).max(axis=2) / np.float32(127)
    divisor = np.where(scale == 0, np.float32(1), scale)
    code = np.clip(np.rint(grouped / divisor[..., None]), -127, 127).astype(np.int8)
    return _join(code, scale)


def _join(code: np.ndarray, scale: Floats) -> Bytes:
    rows, groups, group = code.shape
    blocks = rows // layout.ROWS
    units = layout.interleave(code.view(np.uint8).reshape(rows, -1))
    units = units.reshape(blocks, groups, group * layout.ROWS)
    tail = scale.reshape(blocks, layout.ROWS, groups).transpose(0, 2, 1)
    tail_bytes = np.ascontiguousarray(tail, dtype="<f4").view(np.uint8)
    return np.concatenate([units, tail_bytes], axis=2).reshape(-1)


def decode(data: Bytes, rows: int, cols: int, group: int) -> Floats:
    """Inverse of encode -> float32 [rows, cols]."""
    blocks, groups = layout.row_blocks(rows), cols // group
    parts = data.reshape(blocks, groups, layout.ROWS * (group + 4))
    units = parts[..., : layout.ROWS * group].reshape(blocks, -1, layout.ROWS, layout.UNIT)
    code = layout.deinterleave(units).view(np.int8).reshape(blocks * layout.ROWS, groups, group)
    tail = np.ascontiguousarray(parts[..., layout.ROWS * group :]).view("<f4")
    scale = tail.transpose(0, 2, 1).reshape(blocks * layout.ROWS, groups, 1)
    w: Floats = (code.astype(np.float32) * scale).reshape(-1, cols)[:rows]
    return w
