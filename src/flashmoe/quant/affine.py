"""Affine groups of 2 to 8 bits, as MLX, GPTQ, AWQ and compressed-tensors have them: kept exactly.

A run is one group: its codes as a little-endian bit stream (code k at bits [k bits, k bits + bits)
of the bytes, MLX's order), the scale, and the bias or the zero.

affine: w = code * scale + bias, both of the scale's type. For a symmetric source with codes about
2^(bits - 1), bias = -2^(bits - 1) * scale is exact, and so is the sum. With float32 scale and bias,
the format also holds what none of the others does.
zero: w = (code - zero) * scale with one byte of zero.

Scales of bfloat16, float16 or float32. A group may be split into smaller ones, which get the same
scale. All arithmetic is float32, one operation after the other. 4 bits with bfloat16 are q4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant import layout
from flashmoe.quant.blocks import BlockFormat
from flashmoe.quant.layout import Bytes, Floats

Kind = Literal["affine", "zero"]
BITS = (2, 3, 4, 5, 6, 8)
SCALES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
"""Types of scales by their names in checkpoints."""
SCALE_BYTES = {"bf16": 2, "f16": 2, "f32": 4}


@dataclass(frozen=True)
class Shape:
    """An affine format. group: columns per scale."""

    kind: Kind
    bits: int
    scale: str
    group: int

    @property
    def name(self) -> str:
        """As registered, for example affine6_bf16_g64."""
        return f"{self.kind}{self.bits}_{self.scale}_g{self.group}"

    @property
    def code_bytes(self) -> int:
        """Bytes of a group's codes."""
        return self.group * self.bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of a group."""
        size = SCALE_BYTES[self.scale]
        return self.code_bytes + size + (size if self.kind == "affine" else 1)


def _shapes() -> tuple[Shape, ...]:
    short = [Shape("affine", b, s, g) for s in ("bf16", "f16") for b in BITS for g in (32, 64, 128)]
    kept = [shape for shape in short if (shape.bits, shape.scale) != (4, "bf16")]
    long = [Shape("affine", bits, "f32", 32) for bits in BITS]
    zero = [Shape("zero", b, s, g) for b in (4, 8) for s in ("bf16", "f16") for g in (32, 128)]
    return (*kept, *long, *zero)


SHAPES = {shape.name: shape for shape in _shapes()}


def unpack_codes(stream: Bytes, bits: int) -> Bytes:
    """Little-endian bit streams uint8 [n, m * bits / 8] -> codes [n, m]; m is a multiple of 8."""
    words = np.zeros((*stream.shape[:-1], stream.shape[-1] // bits, 8), np.uint8)
    words[..., :bits] = stream.reshape(*stream.shape[:-1], -1, bits)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    wide = (words.view("<u8") >> shifts) & np.uint64(2**bits - 1)
    codes: Bytes = wide.astype(np.uint8).reshape(*stream.shape[:-1], -1)
    return codes


def pack_codes(codes: NDArray[np.integer], bits: int) -> Bytes:
    """Inverse of unpack_codes: codes [n, m] below 2^bits -> uint8 [n, m * bits / 8]."""
    eights = codes.astype(np.uint64).reshape(*codes.shape[:-1], -1, 8)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    words = np.bitwise_or.reduce(eights << shifts, axis=-1)
    stream = words.astype("<u8")[..., None].view(np.uint8)[..., :bits]
    packed: Bytes = np.ascontiguousarray(stream).reshape(*codes.shape[:-1], -1)
    return packed


def widen(data: Bytes, scale: str) -> Floats:
    """Stored scales uint8 [..., n * size] -> float32 [..., n]."""
    data = np.ascontiguousarray(data)
    if scale == "bf16":
        return layout.from_bf16(data.view("<u2"))
    return data.view("<f2" if scale == "f16" else "<f4").astype(np.float32)


def narrow(values: Floats, scale: str) -> Bytes:
    """float32 [..., n] -> bytes of stored scales [..., n * size], rounded to nearest."""
    if scale == "bf16":
        bits: Bytes = layout.to_bf16(values).astype("<u2").view(np.uint8)
        return bits
    kind = "<f2" if scale == "f16" else "<f4"
    return np.ascontiguousarray(values.astype(kind)).view(np.uint8)


def _unpack(shape: Shape, runs: Bytes) -> Floats:
    size, start = SCALE_BYTES[shape.scale], shape.code_bytes
    code = unpack_codes(runs[:, :start], shape.bits).astype(np.float32)
    scale = widen(runs[:, start : start + size], shape.scale)
    if shape.kind == "zero":
        return (code - runs[:, start + size :].astype(np.float32)) * scale
    return code * scale + widen(runs[:, start + size :], shape.scale)


def _decoder(shape: Shape) -> Callable[[Bytes], Floats]:
    return partial(_unpack, shape)


FORMATS = tuple(
    BlockFormat(shape.name, shape.group, shape.nbytes, _decoder(shape)) for shape in SHAPES.values()
)
