"""FP8 as DeepSeek-V3 checkpoints hold it: E4M3 codes and one scale per block of 128 by 128.

A code is a sign, 4 bits of exponent (bias 7) and 3 of mantissa (OCP 8-bit floating point, E4M3):
no infinities, NaN where all seven bits are set. A weight is code * scale; the tensor of scales is
called `weight_scale_inv`, but multiplies. DeepSeek-V4 calls it `scale`: powers of two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant.fp8 import VALUES

DTYPE = "F8_E4M3"
BLOCK = 128  # rows and columns per scale

Floats = NDArray[np.float32]


def to_float32(codes: NDArray[np.uint8], scales: Floats) -> Floats:
    """codes [rows, cols], scales [rows, cols / 128 rounded up] -> their float32 products.

    A product is rounded once, and exact wherever the scale has at most 20 bits of mantissa.
    """
    spread = np.repeat(scales, BLOCK, axis=1)[:, : codes.shape[1]]
    weights: Floats = VALUES.take(codes) * spread
    return weights
