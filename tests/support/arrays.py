"""Random float32 arrays and output buffers for the tests of the layer kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

THREADS = (1, 2, 5)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Floats:
    """Normal float32 values with this standard deviation."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def unwritten(*shape: int) -> Floats:
    """A float32 output full of NaN: whatever a kernel leaves out shows."""
    return np.full(shape, np.nan, dtype=np.float32)


def assert_close(got: NDArray[np.floating], expected: NDArray[np.floating], bound: float) -> None:
    """Every element within bound times the largest expected magnitude (at least 1e-30)."""
    size = max(float(np.max(np.abs(expected), initial=0.0)), 1e-30)
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound * size)
