"""Rotary position embedding: tables of cos and sin."""

from __future__ import annotations

import numpy as np

from flashmoe.ops.base import Floats, Ints, Ops


class RotaryTable:
    """cos and sin of position * theta^(-2 i / rotary_dim) for i < rotary_dim / 2 (half-split).

    Computed per call: a table of the whole context would cost more memory than it saves time.
    """

    def __init__(self, rotary_dim: int, theta: float) -> None:
        exponent = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        self._inv_freq = theta**-exponent

    def at(self, positions: Ints, ops: Ops) -> tuple[Floats, Floats]:
        """positions [T] -> cos, sin [T, rotary_dim / 2]."""
        return ops.rotary(self._inv_freq, positions)
