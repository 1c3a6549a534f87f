"""Codes, scales and zeros of quantised rows, and the bytes that they are stored as. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant import Format, affine
from flashmoe.quant.layout import Bytes, Floats

# Column 8 c + AWQ_ORDER[i] lies in nibble i of word c.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Groups:
    """Rows as a source has them: w = code * scale + bias, or (code - zero) * scale.

    code uint8 [n, cols]; scale, bias float32 and zero uint8 [n, groups], of cols / groups columns
    each, or, with index [cols], of the columns that index says.
    """

    code: Bytes
    scale: Floats
    bias: Floats | None = None
    zero: Bytes | None = None
    index: NDArray[np.integer] | None = None

    def weights(self) -> Floats:
        """float32 [n, cols]."""
        code, scale = self.code.astype(np.float32), self._spread(self.scale)
        if self.bias is not None:
            weights: Floats = code * scale + self._spread(self.bias)
            return weights
        assert self.zero is not None
        weights = (code - self._spread(self.zero).astype(np.float32)) * scale
        return weights

    def runs(self, kind: affine.Kind, bits: int, scale: str, group: int) -> Bytes:
        """The same as runs of an affine format (quant/affine.py), row by row: uint8 [n, bytes]."""
        assert self.index is None
        times = self.code.shape[1] // self.scale.shape[1] // group
        code = affine.pack_codes(self.code.reshape(len(self.code), -1, group), bits)
        scales = np.repeat(self.scale, times, axis=1)[..., None]
        parts = [code, affine.narrow(scales, scale)]
        if kind == "zero":
            assert self.zero is not None
            parts.append(np.repeat(self.zero, times, axis=1)[..., None])
        else:
            parts.append(affine.narrow(np.repeat(self._as_bias(), times, axis=1)[..., None], scale))
        return np.concatenate(parts, axis=2).reshape(len(self.code), -1)

    def _as_bias(self) -> Floats:
        if self.bias is not None:
            return self.bias
        assert self.zero is not None
        bias: Floats = -self.zero.astype(np.float32) * self.scale
        return bias

    def _spread(self, values: np.ndarray) -> np.ndarray:
        if self.index is not None:
            return values[:, self.index]
        return np.repeat(values, self.code.shape[1] // values.shape[1], axis=1)


@dataclass(frozen=True)
class Kept:
    """The stored format that holds a grouping exactly, and how its runs are made."""

    format: Format
    kind: affine.Kind
    bits: int
    scale: str
    group: int

    def runs(self, groups: Groups) -> Bytes:
        """Rows in the order of the columns, uint8 [n, bytes]."""
        return groups.runs(self.kind, self.bits, self.scale, self.group)


def kept_as(biased: bool, bits: int, scale: str, group: int) -> Kept | None:
    """What holds codes of `bits` bits with scales of a type ("bf16" ...) per `group` columns.

    biased: with a bias of the scale's type, or symmetric; else with an integer zero. None: nothing.
    """
    size = next((one for one in (128, 64, 32) if group % one == 0), 0)
    if not size:
        return None
    if biased and (bits, scale) == (4, "bf16"):
        return Kept(Format("q4", size), "affine", bits, scale, size)
    if not biased and size == 64:
        size = 32
    names: list[tuple[affine.Kind, str, int]] = [("affine" if biased else "zero", scale, size)]
    if biased or scale != "f32":
        # float32 holds zero * scale of a narrower scale exactly.
        names.append(("affine", "f32", 32))
    for kind, wide, cols in names:
        name = f"{kind}{bits}_{wide}_g{cols}"
        if name in affine.SHAPES:
            return Kept(Format(name), kind, bits, wide, cols)
    return None


def words_to_codes(words: Bytes, bits: int, count: int) -> Bytes:
    """Rows of little-endian 32-bit words, uint8 [n, 4 words] -> the first `count` codes of each."""
    usable = words.shape[1] // bits * bits
    return affine.unpack_codes(np.ascontiguousarray(words[:, :usable]), bits)[:, :count]


def columns_to_codes(words: NDArray[np.uint32], bits: int, count: int) -> Bytes:
    """Words packed down the columns, uint32 [m, n] -> codes uint8 [n, count]."""
    across = np.ascontiguousarray(words.T, dtype="<u4").view(np.uint8)
    missing = -across.shape[1] % bits
    return words_to_codes(np.pad(across, ((0, 0), (0, missing))), bits, count)


def awq_codes(words: NDArray[np.uint32]) -> Bytes:
    """AWQ's words uint32 [n, m] -> codes uint8 [8 m, n]: transposed, columns in order."""
    nibbles = affine.unpack_codes(np.ascontiguousarray(words, dtype="<u4").view(np.uint8), 4)
    eights = nibbles.reshape(len(words), -1, 8)
    ordered = np.empty_like(eights)
    ordered[..., AWQ_ORDER] = eights
    return np.ascontiguousarray(ordered.reshape(len(words), -1).T)
