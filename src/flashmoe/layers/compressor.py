"""Compressed keys of DeepSeek-V4: one entry for every window of `ratio` positions.

An entry is a weighted sum of the window's values, normed and rotated as at the window's first
position; the weights are a softmax, per channel, over gates that depend on the token and on its
place in the window. Where windows overlap, half of the channels of the window before join in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.layers.state import Entries, Rotary
from flashmoe.ops.base import Array, Floats, Matrix, Ops

# Entries whose temporaries are in memory together.
_PIECE = 64


@dataclass(frozen=True, eq=False)
class CompressorWeights:
    """A window has len(bias) positions; entries have len(norm) = D dimensions.

    values, gates [W, H]: W is D, or 2 D where windows overlap: first what a token gives to the
    next window, then what it gives to its own. rope: rotations of entries.
    """

    values: Matrix
    gates: Matrix
    bias: Floats  # [ratio, W], added to gates
    norm: Floats  # [D]
    eps: float
    rope: Rotary

    @property
    def ratio(self) -> int:
        """Positions of a window."""
        return len(self.bias)

    @property
    def overlap(self) -> int:
        """Windows before its own that an entry looks at: 0 or 1."""
        return int(self.bias.shape[1]) // len(self.norm) - 1

    @property
    def kept(self) -> int:
        """Positions whose values and gates the entries under way need."""
        return self.ratio * (1 + self.overlap)


def parts_of(w: CompressorWeights, values: Floats, gates: Floats, start: int) -> Floats:
    """values and gates [T, W] of positions start... -> [T, 2 W]: both, with the gates' bias."""
    places = np.arange(start, start + len(gates)) % w.ratio
    return np.concatenate([values, gates + w.bias[places]], axis=1)


def compress(w: CompressorWeights, parts: Floats, start: int, state: Entries, ops: Ops) -> None:
    """Brings `state` up to date: parts [T, 2 W] of positions start... come after what it has."""
    first, end = start // w.ratio, start + len(parts)
    begin = max(first - w.overlap, 0) * w.ratio
    before = state.tail[np.arange(begin, start) % w.kept]
    known = np.concatenate([before, parts])
    for number in range(first, end // w.ratio, _PIECE):
        last = min(number + _PIECE, end // w.ratio)
        low, high = max(number - w.overlap, 0) * w.ratio - begin, last * w.ratio - begin
        state.rows[number:last] = _entries(w, known[low:high], number, ops)
    new = np.arange(max(start, end - w.kept), end)
    state.tail[new % w.kept] = parts[new - start]


def _entries(w: CompressorWeights, parts: Floats, number: int, ops: Ops) -> Floats:
    """Of consecutive windows, the first of them `number`, and of those before as far as they
    matter -> their entries [n, D]."""
    values, gates = _slots(w, parts, number)
    weights = np.exp(gates - gates.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mixed = np.ascontiguousarray((values * weights).sum(axis=1))
    entries = ops.rms_norm(mixed, w.norm, w.eps)
    positions = np.arange(number, number + len(entries), dtype=np.int32) * w.ratio
    rotate_last(entries, *w.rope.at(positions.astype(np.int32)))
    return entries


def _slots(w: CompressorWeights, parts: Floats, number: int) -> tuple[Floats, Floats]:
    """What each entry is a sum of: values and gates [n, ratio or 2 ratio, D]."""
    windows = parts.reshape(-1, w.ratio, 2, 1 + w.overlap, len(w.norm))
    slots = windows[..., -1, :]
    if w.overlap:
        if number == 0:  # there is none before the first: gates of minus infinity
            none = np.zeros((1, *windows.shape[1:]), dtype=np.float32)
            none[:, :, 1] = -np.inf
            windows = np.concatenate([none, windows])
        slots = np.concatenate([windows[:-1, :, :, 0], windows[1:, :, :, 1]], axis=1)
    return slots[:, :, 0], slots[:, :, 1]


def rotate_last(x: Array, cos: Floats, sin: Floats) -> None:
    """Turns the last R dimensions of x [T, ..., D], in pairs (2 i, 2 i + 1), by cos and sin
    [T, R / 2], in place."""
    width = 2 * cos.shape[1]
    shape = (len(x), *(1,) * (x.ndim - 2), -1)
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    first, second = x[..., -width::2], x[..., 1 - width :: 2]
    turned = first * cos - second * sin
    second[...] = second * cos + first * sin
    first[...] = turned
