"""Error-aware rounding: each column's rounding error is made up for by the columns after it.

GPTQ (Frantar et al., 2210.17323): with H = X^T X of the inputs and U the upper Cholesky factor of
its inverse, column j is rounded and its error, over U[j, j], taken from columns k > j times
U[j, k]. The scale of a group is searched when its first column comes up, by the square error
weighted with 1 / U[j, j]^2. All arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant import Format, layout, q4
from flashmoe.quant.codebook import BOOKS, Codebook, scale_bytes, scales
from flashmoe.quant.layout import Bytes, Floats

Doubles = NDArray[np.float64]

# Shares of a group's largest magnitude (codebooks) or range (q4) that the search tries.
_CODEBOOK_SHARES = np.linspace(0.3, 1.0, 15)
_RANGE_SHARES = np.linspace(0.7, 1.0, 13)
CALIBRATED = ("q4", *BOOKS)
"""Formats that `encode` knows."""


def encode(w: Floats, hessian: Doubles, fmt: Format, damping: float = 0.01) -> Bytes:
    """w [rows, cols] -> bytes of a format in CALIBRATED; rows: a multiple of 8.

    Args:
        hessian: [cols, cols], the mean of x x^T over inputs x; of any rank.
        damping: share of the mean of its diagonal that is added to the diagonal.
    """
    grid: _Grid = _Affine() if fmt.name == q4.NAME else _Levels(BOOKS[fmt.name])
    upper = _upper_of_inverse(hessian, damping)
    rest = w.astype(np.float64)
    codes = np.empty(w.shape, np.uint8)
    for start in range(0, w.shape[1], fmt.group):
        span = slice(start, start + fmt.group)
        grid.fit(rest[:, span], 1 / np.square(np.diag(upper)[span]))
        errors = _round_group(rest, codes, upper, span, grid)
        rest[:, span.stop :] -= errors @ upper[span, span.stop :]
    return grid.join(codes.reshape(len(w), -1, fmt.group))


class _Grid(Protocol):
    """The values that codes of a group stand for, row by row."""

    def fit(self, w: Doubles, weights: Doubles) -> None:
        """Choose the scales of a group w [rows, group] by the error weighted per column."""

    def code(self, column: Doubles) -> Bytes:
        """Codes of the values next to a column [rows] of the group fitted last."""

    def value(self, code: Bytes) -> Doubles:
        """What they mean."""

    def join(self, codes: Bytes) -> Bytes:
        """Codes [rows, groups, group] and all scales fitted -> bytes in kernel layout."""


def _round_group(rest: Doubles, codes: Bytes, upper: Doubles, span: slice, grid: _Grid) -> Doubles:
    """Rounds a group's columns in turn -> their errors [rows, group] over U[j, j]."""
    errors = np.empty((len(rest), span.stop - span.start))
    for j in range(span.start, span.stop):
        codes[:, j] = grid.code(rest[:, j])
        error = (rest[:, j] - grid.value(codes[:, j])) / upper[j, j]
        rest[:, j + 1 : span.stop] -= np.outer(error, upper[j, j + 1 : span.stop])
        errors[:, j - span.start] = error
    return errors


def _upper_of_inverse(hessian: Doubles, damping: float) -> Doubles:
    """U with U^T U the inverse of the damped Hessian."""
    size = len(hessian)
    mean = max(float(np.trace(hessian)) / size, float(np.finfo(np.float32).tiny))
    damped = hessian + damping * mean * np.eye(size)
    upper: Doubles = np.linalg.cholesky(np.linalg.inv(damped)).T
    return upper


class _Levels:
    """Codebook formats: one scale byte."""

    def __init__(self, book: Codebook) -> None:
        self._book, self._levels = book, book.levels.astype(np.float64)
        self._middles = (self._levels[1:] + self._levels[:-1]) / 2
        self._bytes: list[Bytes] = []
        self._scale: Doubles = np.empty(0)

    def fit(self, w: Doubles, weights: Doubles) -> None:
        top = np.abs(w).max(axis=1) / self._levels[-1]
        least, best = np.full(len(w), np.inf), np.zeros(len(w), np.uint8)
        for share in _CODEBOOK_SHARES:
            tried = scale_bytes((share * top).astype(np.float32))
            scale = scales(tried).astype(np.float64)[:, None]
            value = self._levels[np.searchsorted(self._middles, w / scale)] * scale
            error = np.square(value - w) @ weights
            better = error < least
            least[better], best[better] = error[better], tried[better]
        self._bytes.append(best)
        self._scale = scales(best).astype(np.float64)

    def code(self, column: Doubles) -> Bytes:
        return np.searchsorted(self._middles, column / self._scale).astype(np.uint8)

    def value(self, code: Bytes) -> Doubles:
        value: Doubles = self._levels[code] * self._scale
        return value

    def join(self, codes: Bytes) -> Bytes:
        return self._book.join(codes, np.stack(self._bytes, axis=1))


@dataclass
class _Fit:
    """bf16 bits of scales and biases [rows], and the error that they leave."""

    scale: NDArray[np.uint16]
    bias: NDArray[np.uint16]
    error: Doubles


class _Affine:
    """q4: scale and bias, both bfloat16."""

    def __init__(self) -> None:
        self._fits: list[_Fit] = []
        self._scale: Doubles = np.empty(0)
        self._bias: Doubles = np.empty(0)

    def fit(self, w: Doubles, weights: Doubles) -> None:
        low: Doubles = w.min(axis=1)
        high: Doubles = w.max(axis=1)
        middle, half = (high + low) / 2, (high - low) / 2
        best: _Fit | None = None
        for share in _RANGE_SHARES:
            tried = self._try(w, weights, middle - share * half, share * half * 2 / 15)
            if best is None:
                best = tried
                continue
            better = tried.error < best.error
            for name in ("scale", "bias", "error"):
                getattr(best, name)[better] = getattr(tried, name)[better]
        assert best is not None
        self._fits.append(best)
        self._scale, self._bias = _wide(best.scale), _wide(best.bias)

    def _try(self, w: Doubles, weights: Doubles, low: Doubles, step: Doubles) -> _Fit:
        fit = _Fit(_narrow(step), _narrow(low), np.empty(0))
        self._scale, self._bias = _wide(fit.scale), _wide(fit.bias)
        value = np.stack([self.value(self.code(column)) for column in w.T], axis=1)
        fit.error = np.square(value - w) @ weights
        return fit

    def code(self, column: Doubles) -> Bytes:
        scale = np.where(self._scale == 0, 1, self._scale)
        return np.clip(np.rint((column - self._bias) / scale), 0, 15).astype(np.uint8)

    def value(self, code: Bytes) -> Doubles:
        value: Doubles = code * self._scale + self._bias
        return value

    def join(self, codes: Bytes) -> Bytes:
        scale, bias = (np.stack([getattr(f, n) for f in self._fits], 1) for n in ("scale", "bias"))
        return q4.join(codes, scale, bias)


def _narrow(x: Doubles) -> NDArray[np.uint16]:
    return layout.to_bf16(x.astype(np.float32))


def _wide(bits: NDArray[np.uint16]) -> Doubles:
    return layout.from_bf16(bits).astype(np.float64)
