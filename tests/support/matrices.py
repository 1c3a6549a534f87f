"""Random weights and stored matrices for kernel tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes, Floats

ALL_FORMATS = [
    Format("bf16"),
    *(Format(name, group) for name in ("q8", "q4") for group in (32, 64, 128)),
    Format("mxfp4", 32),
    *(Format(name, group) for name in ("q2", "q3", "q4n", "q5") for group in (32, 64, 128)),
]


def format_id(fmt: Format) -> str:
    """Short name for test ids."""
    return f"{fmt.name}-{fmt.group}" if fmt.group else fmt.name


@dataclass
class Stored:
    """A matrix in the kernel layout and the weights that its bytes mean."""

    native: _native.Matrix
    w: Floats
    data: Bytes


def at_offset(data: Bytes, offset: int) -> Bytes:
    """A copy of data that starts `offset` bytes after a 64-byte boundary."""
    room = np.empty(data.size + offset + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64 + offset
    room[start : start + data.size] = data
    return room[start : start + data.size]


def stored(fmt: Format, w: Floats, offset: int = 192) -> Stored:
    """w encoded by the NumPy twin, as a native matrix whose bytes start at a non-zero offset."""
    rows, cols = w.shape
    data = at_offset(fmt.encode(w), offset)
    native = _native.Matrix(fmt.name, fmt.group, rows, cols, data)
    return Stored(native, fmt.decode(data, rows, cols), data)


def random_stored(rng: np.random.Generator, fmt: Format, rows: int, cols: int) -> Stored:
    """Normal weights with a mean and a spread of their own per row."""
    w = rng.standard_normal((rows, cols)) * rng.uniform(0.1, 2, (rows, 1)) + rng.normal(
        size=(rows, 1)
    )
    return stored(fmt, w.astype(np.float32))


def unwritten(*shape: int) -> Floats:
    """A float32 output full of NaN: whatever a kernel leaves out shows."""
    return np.full(shape, np.nan, dtype=np.float32)
