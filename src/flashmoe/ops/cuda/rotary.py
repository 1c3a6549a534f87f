"""Rotations on the device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flashmoe.ops.cuda.backend import CudaOps, Position


class DeviceRotary:
    """flashmoe.layers.rope.RotaryTable on a card; computed when needed, in float64 as there.

    inv_freq float64 [R / 2]; scale: what cos and sin are multiplied by.
    """

    def __init__(self, inv_freq: NDArray[np.float64], scale: float, ops: CudaOps) -> None:
        self._inv_freq = torch.from_numpy(inv_freq).to(ops.device)
        self._scale, self._ops = scale, ops

    def at(self, positions: NDArray[np.int32] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] -> cos, sin float32 [T, R / 2]."""
        angle = self._ops.integers(positions)[:, None] * self._inv_freq
        cos, sin = angle.cos(), angle.sin()
        if self._scale != 1.0:
            cos, sin = cos * self._scale, sin * self._scale
        return cos.float(), sin.float()

    def at_one(self, position: Position) -> tuple[torch.Tensor, torch.Tensor]:
        """at([position]); a tensor is int32 [1]."""
        if isinstance(position, torch.Tensor):
            return self.at(position)
        return self.at(np.array([position], dtype=np.int32))
