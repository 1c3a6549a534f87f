"""What backends on host memory share: arrays are NumPy's, and the host's are the backend's."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flashmoe.ops.base import Array, Floats, Ints


class HostArrays:
    """The part of flashmoe.ops.base.Ops between host and backend, where nothing has to move."""

    def vector(self, values: Floats) -> Floats:
        return values

    def state(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        # Memory from the system is zero and becomes resident as it is written.
        return np.zeros(shape, dtype=dtype)

    def rotary(self, inv_freq: NDArray[np.float64], positions: Ints) -> tuple[Floats, Floats]:
        angle = positions[:, None] * inv_freq
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def to_host(self, x: Floats) -> Floats:
        return x
