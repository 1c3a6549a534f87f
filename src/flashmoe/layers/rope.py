"""Rotary position embedding: tables of cos and sin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops.base import Floats

_BLOCK = 64  # positions whose rotation is computed at once while tokens come one by one


class RotaryTable:
    """cos and sin of position * theta^(-2 i / rotary_dim) for i < rotary_dim / 2 (half-split).

    Computed when needed: a table of the whole context would cost more memory than it saves time.
    """

    def __init__(self, rotary_dim: int, theta: float) -> None:
        exponent = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        self._inv_freq = theta**-exponent
        self._block_start = -_BLOCK
        self._cos = self._sin = np.empty((0, 0), dtype=np.float32)

    def at(self, positions: NDArray[np.int32]) -> tuple[Floats, Floats]:
        """positions [T] -> cos, sin [T, rotary_dim / 2]."""
        angle = positions[:, None] * self._inv_freq
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def at_one(self, position: int) -> tuple[Floats, Floats]:
        """at([position]), out of a block of positions that is kept."""
        if not 0 <= position - self._block_start < _BLOCK:
            self._block_start = position
            block = np.arange(position, position + _BLOCK, dtype=np.int32)
            self._cos, self._sin = self.at(block)
        row = position - self._block_start
        return self._cos[row : row + 1], self._sin[row : row + 1]
