"""GGUF's K formats, byte for byte as in the file: 256 columns, cut into parts of 16 or 32.

Each part has a scale, and in some formats a minimum, of 4 to 8 bits, multiplied by the float16 d
and dmin of the run.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant.blocks import BlockFormat, f16
from flashmoe.quant.layout import Bytes, Floats

COLS = 256


def _scales6(packed: Bytes) -> tuple[Floats, Floats]:
    """12 bytes -> 8 scales and 8 minima of 6 bits, each float32 [n, 8]."""
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minimum = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _nibbles(codes: Bytes) -> Bytes:
    """128 bytes -> codes [n, 8, 32]: of each 32 bytes first the low nibbles, then the high ones."""
    pairs = codes.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(runs: Bytes) -> Floats:
    """w = (d s) q - (dmin m) per 32 columns: d, dmin, 12 bytes of s and m, 128 bytes of codes."""
    scale, minimum = _scales6(runs[:, 4:16])
    scale, minimum = f16(runs[:, :2]) * scale, f16(runs[:, 2:4]) * minimum
    codes = _nibbles(runs[:, 16:]).astype(np.float32)
    weights: Floats = scale[..., None] * codes - minimum[..., None]
    return weights.reshape(-1, COLS)


def _q5_k(runs: Bytes) -> Floats:
    """As q4_k, bit j of 32 bytes before the codes being the fifth of the codes of part j."""
    scale, minimum = _scales6(runs[:, 4:16])
    scale, minimum = f16(runs[:, :2]) * scale, f16(runs[:, 2:4]) * minimum
    high = runs[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (_nibbles(runs[:, 48:]) | high << 4).astype(np.float32)
    weights: Floats = scale[..., None] * codes - minimum[..., None]
    return weights.reshape(-1, COLS)


def _q6_k(runs: Bytes) -> Floats:
    """w = (d s) (q - 32) per 16 columns: low nibbles, 2 high bits, 16 int8 scales, d.

    Of each half of 128 columns: 64 bytes hold columns 0-63 in their low, 64-127 in their high
    nibbles, and 32 bytes two bits each of columns l, 32 + l, 64 + l, 96 + l.
    """
    low = runs[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    codes = (low | _crumbs(runs[:, 128:192]) << 4).reshape(-1, 16, 16).astype(np.float32)
    scale = f16(runs[:, 208:]) * runs[:, 192:208].view(np.int8).astype(np.float32)
    weights: Floats = scale[..., None] * (codes - np.float32(32))
    return weights.reshape(-1, COLS)


def _q2_k(runs: Bytes) -> Floats:
    """w = (d s) q - (dmin m) per 16 columns: 16 bytes of s (low) and m (high), codes, d, dmin."""
    scale = f16(runs[:, 80:82]) * (runs[:, :16] & 15).astype(np.float32)
    minimum = f16(runs[:, 82:]) * (runs[:, :16] >> 4).astype(np.float32)
    codes = _crumbs(runs[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    weights: Floats = scale[..., None] * codes - minimum[..., None]
    return weights.reshape(-1, COLS)


def _q3_k(runs: Bytes) -> Floats:
    """w = (d s) q per 16 columns: 32 bytes of high bits, 64 of codes, 12 of 6-bit scales + 32, d.

    q is the 2-bit code, less 4 where bit j of byte l of the high bits, for column 32 j + l, is 0.
    """
    high = runs[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (_crumbs(runs[:, 32:96]).reshape(-1, 8, 32) | high << 2).astype(np.float32)
    low, top = runs[:, 96:104], runs[:, None, 104:108]
    two = (top >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(-1, 16)
    scales = np.concatenate([low & 15, low >> 4], axis=1) | two << 4
    scale = f16(runs[:, 108:]) * (scales.astype(np.float32) - np.float32(32))
    weights: Floats = scale[..., None] * (codes - np.float32(4)).reshape(-1, 16, 16)
    return weights.reshape(-1, COLS)


def _crumbs(packed: Bytes) -> Bytes:
    """64 bytes -> codes of 2 bits [n, 2, 4, 32]: bits 2 j of 32 bytes are columns 32 j to 32 j + 31
    of a half."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes: Bytes = (packed.reshape(-1, 2, 1, 32) >> shifts).astype(np.uint8) & np.uint8(3)
    return codes


FORMATS = (
    BlockFormat("q2_k", COLS, 84, _q2_k),
    BlockFormat("q3_k", COLS, 110, _q3_k),
    BlockFormat("q4_k", COLS, 144, _q4_k),
    BlockFormat("q5_k", COLS, 176, _q5_k),
    BlockFormat("q6_k", COLS, 210, _q6_k),
)
