"""GGUF's formats with one float16 scale per 32 columns, byte for byte as in the file.

Layouts as in ggml (docs/format.md, block formats); codes of 4 bits lie with column i in the low and
column 16 + i in the high nibble of byte i.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant.blocks import BlockFormat, f16
from flashmoe.quant.layout import Bytes, Floats


def _q8_0(runs: Bytes) -> Floats:
    """w = d q: d, 32 int8 codes."""
    weights: Floats = runs[:, 2:].view(np.int8).astype(np.float32) * f16(runs[:, :2])
    return weights


FORMATS = (BlockFormat("q8_0", 32, 34, _q8_0),)
