"""NVFP4: 4-bit floats in groups of 16 with an E4M3 scale each, and one float32 scale of the tensor.

A run of n columns: the tensor's scale (float32), n / 16 E4M3 bytes, n / 2 bytes of codes, the first
of two columns in the low nibble. w = code * (e4m3 * tensor's scale), or, for the formats called
nvfp4_div, code * (e4m3 / tensor's scale): TensorRT Model Optimizer multiplies, compressed-tensors
divides, and the two round differently. MLX has no scale of the tensor: 1. All arithmetic is
float32. Codes as in mxfp4, E4M3 as in fp8; NaN is not a scale.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from flashmoe.quant.blocks import BlockFormat
from flashmoe.quant.fp8 import VALUES
from flashmoe.quant.layout import Bytes, Floats
from flashmoe.quant.mxfp4 import MAGNITUDES

GROUP = 16
RUNS = (64, 256)
CODES = np.concatenate([MAGNITUDES, -MAGNITUDES])


def name(divides: bool, cols: int) -> str:
    """The registered name of the format whose runs have `cols` columns."""
    return f"nvfp4{'_div' if divides else ''}_{cols}"


def unpack_nibbles(data: Bytes) -> Bytes:
    """Bytes [..., n] -> codes [..., 2 n], low nibbles first."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def _unpack(cols: int, divides: bool, runs: Bytes) -> Floats:
    groups = cols // GROUP
    tensor = np.ascontiguousarray(runs[:, :4]).view("<f4").astype(np.float32)
    scale = VALUES[runs[:, 4 : 4 + groups]]
    with np.errstate(invalid="ignore"):  # rows that fill a block up have a tensor's scale of 0
        scale = scale / tensor if divides else scale * tensor
    code = unpack_nibbles(runs[:, 4 + groups :]).reshape(len(runs), groups, GROUP)
    weights: Floats = (CODES[code] * scale[..., None]).reshape(len(runs), cols)
    return weights


FORMATS = tuple(
    BlockFormat(
        name(divides, cols),
        cols,
        4 + cols // GROUP + cols // 2,
        partial(_unpack, cols, divides),
    )
    for divides in (False, True)
    for cols in RUNS
)
