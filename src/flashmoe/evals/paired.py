"""Confidence of a difference between two models on the same text or cases: a paired bootstrap.

Units (windows of a text, cases) are drawn with replacement, each with all its tokens: tokens of one
window are not independent of each other (Koehn 2004 for pairs; Efron & Tibshirani 1993, chapter 8,
for units).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_DRAWS = 4000


def paired_difference(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """Sum of (second - first) over sum of weights, with its 95 % interval -> mean, low, high.

    first, second: sums of each unit; weights: tokens of each unit.
    """
    delta = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    weight = np.asarray(weights, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(delta), (_DRAWS, len(delta)))
    means = delta[draws].sum(axis=1) / weight[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(delta.sum() / weight.sum())
    return {"mean": mean, "low": float(low), "high": float(high), "units": len(delta)}
