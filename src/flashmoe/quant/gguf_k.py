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


FORMATS = (BlockFormat("q4_k", COLS, 144, _q4_k),)
