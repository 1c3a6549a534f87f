"""q4: affine 4-bit groups, w = scale * code + bias with code in [0, 15], bfloat16 scale and bias.

A group of G columns of a block: G / 8 units of 8 rows x 4 bytes, then 8 scales, then 8 biases:
4 * G + 32 bytes. Byte j of unit u holds column 8u + j in its low and 8u + 4 + j in its high
nibble. bias = bf16(min w), scale = bf16((max w - min w) / 15), and
code = clip(round-half-even((w - bias) / scale)). Codes are chosen after scale and bias are
rounded, so that their rounding is not an error of its own.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant import layout
from flashmoe.quant.layout import Bytes, Floats

NAME = "q4"
GROUPS = (32, 64, 128)


def step(group: int) -> int:
    """Rows have a multiple of that many columns."""
    return group


def row_bytes(cols: int, group: int) -> int:
    """Stored bytes per row; cols must be a multiple of group."""
    return cols // group * (group // 2 + 4)


def encode(w: Floats, group: int) -> Bytes:
    """w [rows, cols] -> bytes in kernel layout."""
    w = layout.pad_rows(w) + np.float32(0)  # -0 becomes +0: of the two, min and max may pick either
    grouped = w.reshape(w.shape[0], -1, group)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    bias_bits = layout.to_bf16(low)
    scale_bits = layout.to_bf16((high - low) / np.float32(15))
    scale, bias = layout.from_bf16(scale_bits), layout.from_bf16(bias_bits)
    divisor = np.where(scale == 0, np.float32(1), scale)
    exact = (grouped - bias[..., None]) / divisor[..., None]
    code = np.where(scale[..., None] == 0, 0, np.clip(np.rint(exact), 0, 15))
    return join(code.astype(np.uint8), scale_bits, bias_bits)


def join(code: Bytes, scale_bits: np.ndarray, bias_bits: np.ndarray) -> Bytes:
    """Codes [rows, groups, group], bf16 bits [rows, groups] -> bytes; rows: a multiple of 8."""
    rows, groups, group = code.shape
    blocks = rows // layout.ROWS
    halves = code.reshape(rows, groups, group // 8, 2, 4)
    packed = (halves[..., 0, :] | (halves[..., 1, :] << np.uint8(4))).reshape(rows, -1)
    units = layout.interleave(packed).reshape(blocks, groups, group * layout.ROWS // 2)
    return np.concatenate([units, _tail(scale_bits), _tail(bias_bits)], axis=2).reshape(-1)


def from_runs(rows: Bytes, group: int) -> Bytes:
    """Affine runs of 4 bits with bfloat16 (quant/affine.py), uint8 [rows, n] -> stored bytes."""
    missing = layout.row_blocks(len(rows)) * layout.ROWS - len(rows)
    runs = np.pad(rows, ((0, missing), (0, 0))).reshape(len(rows) + missing, -1, group // 2 + 4)
    packed = runs[..., : group // 2]
    code = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], group)
    tail = np.ascontiguousarray(runs[..., group // 2 :]).view("<u2")
    return join(code, tail[..., 0], tail[..., 1])


def _tail(bits: np.ndarray) -> Bytes:
    """[rows, groups] bf16 bits -> [blocks, groups, 16] bytes."""
    rows, groups = bits.shape
    ordered = bits.reshape(rows // layout.ROWS, layout.ROWS, groups).transpose(0, 2, 1)
    return np.ascontiguousarray(ordered, dtype="<u2").view(np.uint8)


def decode(data: Bytes, rows: int, cols: int, group: int) -> Floats:
    """Inverse of encode -> float32 [rows, cols]."""
    blocks, groups, half = layout.row_blocks(rows), cols // group, layout.ROWS * group // 2
    parts = data.reshape(blocks, groups, half + 32)
    units = parts[..., :half].reshape(blocks, -1, layout.ROWS, layout.UNIT)
    packed = layout.deinterleave(units).reshape(-1, groups, group // 8, 1, 4)
    code = np.concatenate([packed & 15, packed >> 4], axis=3).reshape(-1, groups, group)
    tail = layout.from_bf16(np.ascontiguousarray(parts[..., half:]).view("<u2"))
    tail = tail.reshape(blocks, groups, 2, layout.ROWS).transpose(2, 0, 3, 1)
    scale, bias = tail.reshape(2, blocks * layout.ROWS, groups, 1)
    w: Floats = (code.astype(np.float32) * scale + bias).reshape(-1, cols)[:rows]
    return w
