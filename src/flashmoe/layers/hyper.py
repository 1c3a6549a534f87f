"""Hyper-connections: a residual of several streams, mixed before and after every part of a layer.

Zhu et al. 2024 (https://arxiv.org/abs/2409.19606), in the form of DeepSeek-V4, whose mixing across
streams is brought near a doubly stochastic matrix by Sinkhorn and Knopp's iteration ("manifold-
constrained", https://arxiv.org/abs/2512.24880). Streams lie side by side: h is [T, S * H] here.

Sums are added up in an order that does not depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flashmoe.ops.base import Floats

# Rows whose temporaries are in memory together.
_PIECE = 32


@dataclass(frozen=True, eq=False)
class StreamWeights:
    """What makes the mixing weights of S streams before and after a part of a layer.

    maps [S * (2 + S), S * H] and base [S * (2 + S)]: of what goes in, of what comes out, and of
    the streams across, row by row; scale [3]: of each of these. norm_eps: of the norm of h.
    """

    maps: Floats
    base: Floats
    scale: Floats
    streams: int
    iterations: int
    eps: float
    norm_eps: float


class Mixed(NamedTuple):
    """x [T, H]: the input of a part; out [T, S]: its result's weight in each stream;
    across [T, S, S]: [t, j, k] is that of stream j in the new stream k."""

    x: Floats
    out: Floats
    across: Floats


@dataclass(frozen=True, eq=False)
class HeadStreams:
    """How the streams become one before the final norm: maps [S, S * H], base [S], scale [1]."""

    maps: Floats
    base: Floats
    scale: Floats
    eps: float
    norm_eps: float

    def spread(self, h: Floats) -> Floats:
        """h [T, H] -> [T, S * H]: every stream begins as the embedding."""
        return np.tile(h, (1, len(self.maps)))

    def collapse(self, h: Floats) -> Floats:
        """h [T, S * H] -> [T, H]."""
        raw = _projected(h, self.maps, self.norm_eps) * self.scale + self.base
        return _weighted(h, _sigmoid(raw) + np.float32(self.eps))


def enter(h: Floats, w: StreamWeights) -> Mixed:
    """h [T, S * H] -> the input of a part, and how `leave` brings its result back."""
    count, eps = w.streams, np.float32(w.eps)
    raw = _projected(h, w.maps, w.norm_eps)
    into, out, across = np.split(raw, [count, 2 * count], axis=1)
    bases = np.split(w.base, [count, 2 * count])
    into = _sigmoid(into * w.scale[0] + bases[0]) + eps
    out = _sigmoid(out * w.scale[1] + bases[1]) * np.float32(2)
    square = (across * w.scale[2] + bases[2]).reshape(-1, count, count)
    return Mixed(_weighted(h, into), out, _doubly_stochastic(square, w.iterations, eps))


def leave(h: Floats, y: Floats, mixed: Mixed) -> None:
    """h [T, S * H], stream k = out[k] * y + the sum over j of across[j, k] * stream j, in place."""
    count = mixed.out.shape[1]
    for rows in _pieces(len(h)):
        streams, across = h[rows].reshape(-1, count, y.shape[1]), mixed.across[rows]
        new = mixed.out[rows][..., None] * y[rows][:, None]
        for j in range(count):
            new += across[:, j, :, None] * streams[:, j, None]
        streams[...] = new


def _projected(h: Floats, maps: Floats, eps: float) -> Floats:
    """maps [R, N] . rows of h [T, N], each divided by its root mean square -> [T, R]."""
    # Not BLAS, whose order of additions depends on the number of rows.
    squares = np.einsum("tn,tn->t", h, h)[:, None] / np.float32(h.shape[1])
    out: Floats = np.einsum("tn,rn->tr", h, maps)
    out /= np.sqrt(squares + np.float32(eps))
    return out


def _weighted(h: Floats, weights: Floats) -> Floats:
    """The sum over the streams of h [T, S * H] by weights [T, S] -> [T, H]."""
    streams = h.reshape(len(h), weights.shape[1], -1)
    total: Floats = streams[:, 0] * weights[:, 0, None]
    for j in range(1, weights.shape[1]):
        total += streams[:, j] * weights[:, j, None]
    return total


def _doubly_stochastic(c: Floats, iterations: int, eps: np.float32) -> Floats:
    """c [T, S, S]: softmax of each row, then columns and rows divided by their sums in turn."""
    c = np.exp(c - c.max(axis=2, keepdims=True))
    c /= c.sum(axis=2, keepdims=True)
    c += eps
    c /= c.sum(axis=1, keepdims=True) + eps
    for _ in range(iterations - 1):
        c /= c.sum(axis=2, keepdims=True) + eps
        c /= c.sum(axis=1, keepdims=True) + eps
    return c


def _sigmoid(x: Floats) -> Floats:
    result: Floats = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
    return result


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(begin, begin + _PIECE) for begin in range(0, rows, _PIECE))
