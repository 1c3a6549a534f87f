"""MXFP4 as gpt-oss checkpoints hold it (OCP Microscaling Formats, v1.0): 32 E2M1 codes, one scale.

Byte j of a block holds element 2 j in its low and 2 j + 1 in its high nibble. A code is a sign and
one of 0, 0.5, 1, 1.5, 2, 3, 4, 6; the scale s means 2^(s - 127), 255 means NaN.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # columns per scale
BLOCK_BYTES = 16
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def to_bf16(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows as bf16, which holds every finite value exactly.

    blocks [rows, cols / 2], scales [rows, cols / 32] -> bytes of bf16, uint8 [rows, 2 * cols].
    Scales of 255 give NaN, products beyond 2^128 infinity.
    """
    paired = blocks.reshape(len(blocks), -1, BLOCK_BYTES)
    index = scales.astype(np.uint16)[..., None] << np.uint16(8) | paired
    return _pairs().take(index).view(np.uint8).reshape(len(blocks), -1)


@functools.cache
def _pairs() -> NDArray[np.uint32]:
    """The bf16 values of both nibbles, the first in the low half, by scale * 256 + byte."""
    magnitudes = np.array(_MAGNITUDES, dtype=np.float32)
    values = np.concatenate([magnitudes, -magnitudes])
    with np.errstate(over="ignore"):
        scaled = np.ldexp(values, np.arange(256)[:, None] - 127)
    scaled[255] = np.nan
    bits = (scaled.astype("<f4").view("<u4") >> 16).astype("<u4")  # [256, 16]
    return np.ascontiguousarray((bits[:, None, :] | bits[:, :, None] << 16).reshape(-1))
