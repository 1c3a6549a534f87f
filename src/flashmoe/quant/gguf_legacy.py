"""GGUF's formats with one float16 scale per 32 columns, byte for byte as in the file.

Layouts as in ggml (docs/format.md, block formats); codes of 4 bits lie with column i in the low and
column 16 + i in the high nibble of byte i.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant.blocks import BlockFormat, f16
from flashmoe.quant.layout import Bytes, Floats


def nibbles(codes: Bytes) -> Bytes:
    """16 bytes -> 32 codes of 4 bits: the low nibbles, then the high ones."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1)


def _five_bits(high: Bytes, codes: Bytes) -> Bytes:
    """The nibbles with a fifth bit from bit i of 4 bytes."""
    return nibbles(codes) | np.unpackbits(high, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(runs: Bytes) -> Floats:
    """w = d (q - 8): d, codes."""
    return f16(runs[:, :2]) * (nibbles(runs[:, 2:]).astype(np.float32) - np.float32(8))


def _q4_1(runs: Bytes) -> Floats:
    """w = d q + m: d, m, codes."""
    return f16(runs[:, :2]) * nibbles(runs[:, 4:]).astype(np.float32) + f16(runs[:, 2:4])


def _q5_0(runs: Bytes) -> Floats:
    """w = d (q - 16): d, 32 high bits, codes."""
    codes = _five_bits(runs[:, 2:6], runs[:, 6:]).astype(np.float32)
    return f16(runs[:, :2]) * (codes - np.float32(16))


def _q5_1(runs: Bytes) -> Floats:
    """w = d q + m: d, m, 32 high bits, codes."""
    codes = _five_bits(runs[:, 4:8], runs[:, 8:]).astype(np.float32)
    return f16(runs[:, :2]) * codes + f16(runs[:, 2:4])


def _q8_0(runs: Bytes) -> Floats:
    """w = d q: d, 32 int8 codes."""
    return f16(runs[:, :2]) * runs[:, 2:].view(np.int8).astype(np.float32)


FORMATS = (
    BlockFormat("q4_0", 32, 18, _q4_0),
    BlockFormat("q4_1", 32, 20, _q4_1),
    BlockFormat("q5_0", 32, 22, _q5_0),
    BlockFormat("q5_1", 32, 24, _q5_1),
    BlockFormat("q8_0", 32, 34, _q8_0),
)
