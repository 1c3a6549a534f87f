"""GGUF's IQ4 formats, byte for byte as in the file: codes choose one of 16 uneven steps."""

from __future__ import annotations

import numpy as np

from flashmoe.quant.blocks import BlockFormat, f16
from flashmoe.quant.gguf_legacy import nibbles
from flashmoe.quant.layout import Bytes, Floats

STEPS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def _iq4_nl(runs: Bytes) -> Floats:
    """w = d step(q): d, codes as in q4_0."""
    weights: Floats = f16(runs[:, :2]) * STEPS[nibbles(runs[:, 2:])]
    return weights


def _iq4_xs(runs: Bytes) -> Floats:
    """w = (d s) step(q) per 32 of 256 columns: d, 2 bytes of high and 4 of low bits of s + 32."""
    high = np.ascontiguousarray(runs[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    pairs = runs[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15
    scales = pairs.reshape(-1, 8) | (high.astype(np.uint8) & 3) << 4
    scale = f16(runs[:, :2]) * (scales.astype(np.float32) - np.float32(32))
    codes = nibbles(runs[:, 8:].reshape(-1, 8, 16))
    weights: Floats = scale[..., None] * STEPS[codes]
    return weights.reshape(-1, 256)


FORMATS = (
    BlockFormat("iq4_nl", 32, 18, _iq4_nl),
    BlockFormat("iq4_xs", 256, 136, _iq4_xs),
)
