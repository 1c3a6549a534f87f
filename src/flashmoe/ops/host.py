"""What backends on host memory share: arrays are NumPy's, and the host's are the backend's."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.ops.base import Array, Floats


def softcap(logits: Floats, limit: float) -> None:
    """logits = limit * tanh(logits / limit), in place: Gemma 2, Riviere et al. 2024, section 2."""
    np.divide(logits, limit, out=logits)
    np.tanh(logits, out=logits)
    np.multiply(logits, limit, out=logits)


class HostArrays:
    """The part of flashmoe.ops.base.Primitives between host and backend: nothing has to move."""

    def vector(self, values: Floats) -> Floats:
        return values

    def state(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        # Memory from the system becomes resident as it is written.
        return np.empty(shape, dtype=dtype)
