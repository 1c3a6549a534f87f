"""mxfp4: 4-bit floats in groups of 32 with one power of two, as gpt-oss is published.

OCP Microscaling Formats (MX) v1.0: a code is a sign bit and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6;
w = code * 2^(s - 127). A group of a block: 4 units of 8 rows x 4 bytes as in q4 (byte j of unit u
holds column 8u + j in its low and 8u + 4 + j in its high nibble), then 8 scale bytes: 136 bytes.
s = max(E - 2, 0) where E is the exponent field of the group's largest magnitude as float32;
codes are rounded to nearest, ties to even codes, at most 6 in magnitude. So any weights that were
MXFP4 before are kept exactly, with the signs of their zeros.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant import layout
from flashmoe.quant.layout import Bytes, Floats

NAME = "mxfp4"
GROUPS = (32,)

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
# Between a code and the next; True where the middle itself belongs to the upper one.
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_UPPER = (False, True, False, True, False, True, False)


def step(group: int) -> int:
    """Rows have a multiple of that many columns."""
    return group


def row_bytes(cols: int, group: int) -> int:
    """Stored bytes per row; cols must be a multiple of 32."""
    return cols // group * (group // 2 + 1)


def encode(w: Floats, group: int) -> Bytes:
    """w [rows, cols] -> bytes in kernel layout."""
    padded = layout.pad_rows(w)
    grouped = padded.reshape(len(padded), -1, group)
    largest = np.abs(grouped).max(axis=2).view(np.uint32) >> 23
    scale = np.maximum(largest.astype(np.int32) - 2, 0)
    x = np.ldexp(np.abs(grouped), 127 - scale[..., None])
    code = np.zeros(x.shape, dtype=np.uint8)
    for middle, upper in zip(_MIDDLES, _UPPER, strict=True):
        code += (x >= middle) if upper else (x > middle)
    return _join(code | np.signbit(grouped).astype(np.uint8) << 3, scale.astype(np.uint8))


def _join(code: Bytes, scale: Bytes) -> Bytes:
    rows, groups, group = code.shape
    blocks = rows // layout.ROWS
    halves = code.reshape(rows, groups, group // 8, 2, 4)
    packed = (halves[..., 0, :] | (halves[..., 1, :] << np.uint8(4))).reshape(rows, -1)
    units = layout.interleave(packed).reshape(blocks, groups, group * layout.ROWS // 2)
    tail = scale.reshape(blocks, layout.ROWS, groups).transpose(0, 2, 1)
    return np.concatenate([units, tail], axis=2).reshape(-1)


def decode(data: Bytes, rows: int, cols: int, group: int) -> Floats:
    """The weights that the bytes mean -> float32 [rows, cols]."""
    blocks, groups, half = layout.row_blocks(rows), cols // group, layout.ROWS * group // 2
    parts = data.reshape(blocks, groups, half + layout.ROWS)
    units = parts[..., :half].reshape(blocks, -1, layout.ROWS, layout.UNIT)
    packed = layout.deinterleave(units).reshape(-1, groups, group // 8, 1, 4)
    code = np.concatenate([packed & 15, packed >> 4], axis=3).reshape(-1, groups, group)
    value = np.concatenate([MAGNITUDES, -MAGNITUDES])[code]
    scale = parts[..., half:].transpose(0, 2, 1).reshape(-1, groups, 1).astype(np.int32)
    w: Floats = np.ldexp(value, scale - 127).reshape(-1, cols)[:rows]
    return w
