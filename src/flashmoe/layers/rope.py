"""Rotary position embedding: tables of cos and sin."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.config import Yarn
from flashmoe.ops.base import Floats

_BLOCK = 64  # positions whose rotation is computed at once while tokens come one by one
Doubles = NDArray[np.float64]


def yarn_scale(yarn: Yarn) -> float:
    """What cos and sin are multiplied by."""
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return yarn_mscale(yarn, yarn.mscale) / yarn_mscale(yarn, yarn.mscale_all_dim)
    return yarn_mscale(yarn, 1.0)


def yarn_mscale(yarn: Yarn, weight: float) -> float:
    """What YaRN multiplies a factor of attention scores by: 0.1 weight ln(factor) + 1."""
    return 0.1 * weight * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0


def yarn_frequencies(yarn: Yarn, frequencies: Doubles, theta: float) -> Doubles:
    """theta^(-2 i / d) for i < d / 2 -> the frequencies to use, float64 [d / 2].

    Those that turn more than beta_fast times within the original context stay, those that turn
    less than beta_slow times are divided by the factor, with a ramp in between: YaRN, Peng et al.
    2023, in the form of transformers.
    """
    dim = 2 * len(frequencies)

    def index(turns: float) -> float:
        # Of the frequency that turns so often within the original context.
        angle = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(angle) / (2 * math.log(theta))

    low, high = index(yarn.beta_fast), index(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    mixed: Doubles = frequencies / yarn.factor * ramp + frequencies * (1.0 - ramp)
    return mixed


class RotaryTable:
    """cos and sin of position * theta^(-2 i / rotary_dim) for i < rotary_dim / 2 (half-split).

    Computed when needed: a table of the whole context would cost more memory than it saves time.
    inv_freq: float64 [rotary_dim / 2]; scale: what cos and sin are multiplied by (YaRN).
    pairs: those after the first so many stay where they are (None: all turn).
    """

    def __init__(
        self, rotary_dim: int, theta: float, yarn: Yarn | None = None, pairs: int | None = None
    ) -> None:
        exponent = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        self.inv_freq, self.scale = theta**-exponent, 1.0
        if pairs is not None:
            self.inv_freq[pairs:] = 0.0
        if yarn is not None:
            self.inv_freq = yarn_frequencies(yarn, self.inv_freq, theta)
            self.scale = yarn_scale(yarn)
        self._block_start = -_BLOCK
        self._cos = self._sin = np.empty((0, 0), dtype=np.float32)

    def at(self, positions: NDArray[np.int32]) -> tuple[Floats, Floats]:
        """positions [T] -> cos, sin [T, rotary_dim / 2], scaled if YaRN says so."""
        angle = positions[:, None] * self.inv_freq
        cos, sin = np.cos(angle) * self.scale, np.sin(angle) * self.scale
        return cos.astype(np.float32), sin.astype(np.float32)

    def at_one(self, position: int) -> tuple[Floats, Floats]:
        """at([position]), out of a block of positions that is kept."""
        if not 0 <= position - self._block_start < _BLOCK:
            self._block_start = position
            block = np.arange(position, position + _BLOCK, dtype=np.int32)
            self._cos, self._sin = self.at(block)
        row = position - self._block_start
        return self._cos[row : row + 1], self._sin[row : row + 1]
