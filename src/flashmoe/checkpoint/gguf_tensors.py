"""Tensors of GGUF files as the hub has them: rows in the original order, stacks taken apart.

Most stay where they are. What the converter has changed is made anew when it is read: `Made` says
how. A permutation of rows keeps their bytes; anything else becomes float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import ConfigError
from flashmoe.quant import FORMATS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Order = NDArray[np.int64]
Read = Callable[[Tensor], Bytes]
"""All bytes of a tensor of the files, uint8 [nbytes]."""


@dataclass(frozen=True)
class Made:
    """A tensor that is computed. tensor: its name, type and shape; where it lies means nothing."""

    tensor: Tensor
    make: Callable[[Read], Bytes]


def floats(raw: Bytes, tensor: Tensor) -> Floats:
    """The numbers of a tensor of any type -> float32 of its shape."""
    if tensor.dtype in ("F32", "F16"):
        values: Floats = raw.view("<f4" if tensor.dtype == "F32" else "<f2").astype(np.float32)
    elif tensor.dtype == "BF16":
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        format_, cols = FORMATS[tensor.dtype.lower()], tensor.shape[-1]
        values = format_.decode(raw, tensor.nbytes // format_.row_bytes(cols, 0), cols, 0)
    return values.reshape(tensor.shape)


def as_bytes(values: NDArray[Any]) -> Bytes:
    """float32 bytes of an array."""
    return np.ascontiguousarray(values, dtype="<f4").view(np.uint8).reshape(-1)


def made_floats(
    name: str, shape: tuple[int, ...], of: tuple[Tensor, ...], make: Callable[..., NDArray[Any]]
) -> Made:
    """A float32 tensor made of the numbers of others."""
    tensor = Tensor(name, of[0].path, "F32", shape, 0, 4 * math.prod(shape))
    return Made(tensor, lambda read: as_bytes(make(*(floats(read(t), t) for t in of))))


def reordered(tensor: Tensor, name: str, rows: int, order: Callable[[], Order]) -> Made:
    """Rows in another order: row i is row order()[i] of `tensor`. The order is made when the tensor
    is: only then are its sizes known to be those of the model."""
    expect_rows(tensor, rows)
    renamed = Tensor(name, tensor.path, tensor.dtype, tensor.shape, 0, tensor.nbytes)

    def make(read: Read) -> Bytes:
        made: Bytes = read(tensor).reshape(rows, -1)[order()]
        return made.reshape(-1)

    return Made(renamed, make)


def expect_rows(tensor: Tensor, rows: int) -> None:
    """Raises ConfigError unless the tensor's first dimension is `rows`."""
    expect_shape(tensor, (rows, *tensor.shape[1:]))


def expect_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ConfigError unless the tensor has this shape."""
    if tensor.shape != shape:
        raise ConfigError(
            "metadata contradict the shape",
            where=f"{tensor.path}: {tensor.name}",
            expected=list(shape),
            got=list(tensor.shape),
        )


def part(tensor: Tensor, name: str, index: int) -> Tensor:
    """Member `index` of a stack [E, ...]."""
    nbytes = tensor.nbytes // tensor.shape[0]
    offset = tensor.offset + index * nbytes
    return Tensor(name, tensor.path, tensor.dtype, tensor.shape[1:], offset, nbytes)


def unrotated(heads: int, rows: int) -> Order:
    """Undoes the order that the converter gives Q and K of Llama: pairs (2 i, 2 i + 1) become the
    halves (i, i + half) of a head."""
    pairs = np.arange(rows).reshape(heads, -1, 2)
    return pairs.transpose(0, 2, 1).reshape(-1)


def tiled_heads(key_heads: int, heads: int, dim: int) -> Order:
    """Rows of value heads stored tiled (head j * key_heads + g) in grouped order (g, then j)."""
    stored = np.arange(heads * dim).reshape(heads // key_heads, key_heads, dim)
    return stored.transpose(1, 0, 2).reshape(-1)
