"""The numbers of OCP's 8-bit floats E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa.

No infinities; NaN where all seven bits are set.
"""

from __future__ import annotations

import numpy as np

from flashmoe.quant.layout import Floats


def _values() -> Floats:
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    normal = np.ldexp(8.0 + mantissa, exponent - 10)
    values = np.where(exponent > 0, normal, np.ldexp(mantissa.astype(np.float64), -9))
    values[0x7F] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


VALUES: Floats = _values()
"""What each code means, float32 [256]."""
