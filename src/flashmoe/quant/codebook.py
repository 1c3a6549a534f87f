"""q2, q3, q4n, q5: codes of 2 to 5 bits into a fixed table of levels, an 8-bit scale per row and
group.

w = level[code] * scale. The levels are, as small integers, the quantiser of least square error for
normal weights (Max, 1960), for q4n and q5 of
weights over a scale searched for each 64. Scale byte s: 5 bits of exponent and 3 of mantissa,
(1 + s % 8 / 8) * 2^(s // 8 - 28). A group of G columns of a block: per 32 columns as many
units of 8 rows x 4 bytes as a code has bits, then 8 scale bytes. q2, q3: byte j of units 0 and 1
holds, in bits 2k and 2k + 1, the low bits of column 16 u + 4 k + j. q4n, q5: byte j of units 0 to 3
holds, in its low and high nibble, the low bits of columns 8 u + j and 8 u + 4 + j. q3, q5: byte j
of the last unit holds, in bit k, the high bit of column 4 k + j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant import layout
from flashmoe.quant.layout import Bytes, Floats

CHUNK = 32
_SCALE_BASE = 99 << 3


@dataclass(frozen=True)
class Codebook:
    """A format: bits per code; its odd-symmetric levels, ascending; scale of a plain encoding over
    the group's largest magnitude."""

    NAME: str
    bits: int
    integers: tuple[int, ...]
    ratio: float
    GROUPS: tuple[int, ...] = (32, 64, 128)

    @property
    def low_bits(self) -> int:
        """Bits of a code that lie together; the one above them, if any, is in the last unit."""
        return self.bits & ~1

    @property
    def levels(self) -> Floats:
        """float32 [2^bits]."""
        return np.array(self.integers, np.float32)

    def step(self, group: int) -> int:
        """Rows have a multiple of that many columns."""
        return group

    def row_bytes(self, cols: int, group: int) -> int:
        """Stored bytes per row; cols must be a multiple of group."""
        return cols // group * (group * self.bits // 8 + 1)

    def encode(self, w: Floats, group: int) -> Bytes:
        """w [rows, cols], magnitudes up to 128 -> bytes in kernel layout, round to nearest."""
        grouped = layout.pad_rows(w).reshape(-1, w.shape[1] // group, group)
        scale = scale_bytes(np.abs(grouped).max(axis=2) * np.float32(self.ratio))
        return self.join(self.nearest(grouped / scales(scale)[..., None]), scale)

    def nearest(self, x: Floats) -> Bytes:
        """Codes of the levels next to x, the lower one of two; same shape."""
        middles = (self.levels[1:] + self.levels[:-1]) / 2
        return np.searchsorted(middles, x).astype(np.uint8)

    def join(self, code: Bytes, scale: Bytes) -> Bytes:
        """Codes [rows, groups, group] and scale bytes [rows, groups] -> bytes in kernel layout.

        rows: a multiple of 8."""
        rows, groups, group = code.shape
        parts = code.reshape(rows, groups, group // CHUNK, 8, 4)
        width = self.low_bits
        units = _pack_bits(parts & np.uint8((1 << width) - 1), width, 8 // width)
        if self.bits > width:
            units = np.concatenate([units, _pack_bits(parts >> np.uint8(width), 1, 8)], 3)
        blocks = rows // layout.ROWS
        packed = layout.interleave(units.reshape(rows, -1)).reshape(blocks, groups, -1)
        tail = scale.reshape(blocks, layout.ROWS, groups).transpose(0, 2, 1)
        return np.concatenate([packed, tail], axis=2).reshape(-1)

    def decode(self, data: Bytes, rows: int, cols: int, group: int) -> Floats:
        """The weights that the bytes mean -> float32 [rows, cols]."""
        blocks, groups = layout.row_blocks(rows), cols // group
        parts = data.reshape(blocks, groups, -1)
        units = parts[..., : -layout.ROWS].reshape(blocks, -1, layout.ROWS, layout.UNIT)
        chunks = layout.deinterleave(units).reshape(-1, groups, group // CHUNK, self.bits, 4)
        width = self.low_bits
        code = _unpack_bits(chunks[..., :width, :], width, 8 // width)
        if self.bits > width:
            code |= _unpack_bits(chunks[..., width:, :], 1, 8) << np.uint8(width)
        scale = scales(parts[..., -layout.ROWS :]).transpose(0, 2, 1).reshape(-1, groups, 1)
        value = self.levels[code.reshape(-1, groups, group)] * scale
        return np.ascontiguousarray(value.reshape(-1, cols)[:rows])


def scales(s: Bytes) -> Floats:
    """Scale bytes -> float32, same shape."""
    return ((s.astype(np.uint32) + _SCALE_BASE) << 20).view(np.float32)


def scale_bytes(scale: Floats) -> Bytes:
    """The scale bytes next to float32 numbers >= 0, halves up."""
    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(1 << 19)) >> 20).astype(np.int64)
    return np.clip(rounded - _SCALE_BASE, 0, 255).astype(np.uint8)


def _pack_bits(parts: Bytes, width: int, count: int) -> Bytes:
    """[..., 8, 4] codes -> [..., 8 / count, 4]: `count` of them to a byte, the first lowest."""
    grouped = parts.reshape(*parts.shape[:-2], 8 // count, count, 4)
    shifts = (width * np.arange(count, dtype=np.uint8))[:, None]
    packed: Bytes = np.bitwise_or.reduce(grouped << shifts, axis=-2)
    return packed


def _unpack_bits(units: Bytes, width: int, count: int) -> Bytes:
    """Inverse of _pack_bits."""
    shifts = (width * np.arange(count, dtype=np.uint8))[:, None]
    codes: NDArray[np.uint8] = units[..., None, :] >> shifts & np.uint8((1 << width) - 1)
    return codes.reshape(*units.shape[:-2], 8, 4)


Q2 = Codebook("q2", 2, (-30, -9, 9, 30), 0.021)
Q3 = Codebook("q3", 3, (-35, -22, -12, -4, 4, 12, 22, 35), 0.0257)


def _symmetric(name: str, bits: int, upper: tuple[int, ...], ratio: float) -> Codebook:
    return Codebook(name, bits, (*(-level for level in reversed(upper)), *upper), ratio)


Q4N = _symmetric("q4n", 4, (3, 9, 15, 21, 28, 36, 46, 60), 0.0158)
Q5 = _symmetric("q5", 5, (2, 5, 8, 11, 15, 18, 21, 25, 28, 32, 36, 40, 44, 49, 55, 62), 0.0161)
BOOKS = {book.NAME: book for book in (Q2, Q3, Q4N, Q5)}
