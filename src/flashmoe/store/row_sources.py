"""Rows of a matrix as a checkpoint holds them: in order, in turn, transposed, MXFP4, FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashmoe.checkpoint import fp8, mxfp4
from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.safetensors import ITEM_BYTES, WEIGHT_TYPES, to_float32
from flashmoe.checkpoint.safetensors import Tensor as SourceTensor
from flashmoe.errors import CheckpointError, ConfigError
from flashmoe.quant.layout import Bytes, Floats


class RowSource(Protocol):
    """`rows` rows of `cols` numbers each."""

    @property
    def tensor(self) -> SourceTensor: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def dtype(self) -> str:
        """BF16, F16 or F32: what `read` returns."""

    @property
    def at_once(self) -> bool:
        """Whether a few rows cost as much as all."""

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        """Rows [start, stop) -> uint8 [stop - start, cols * itemsize]."""

    def place(self, row: int, col: int) -> str:
        """Where a number lies in the tensor, for people."""


@dataclass(frozen=True)
class Rows:
    """Rows first, first + step, ... of a checkpoint tensor seen as a matrix with `cols` columns."""

    tensor: SourceTensor
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = False

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        size = self.cols * ITEM_BYTES[self.dtype]
        return read_rows_of(checkpoint, self.tensor, size, self._span(start, stop))

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, column {col}"

    def _span(self, start: int, stop: int) -> range:
        return range(self.first + self.step * start, self.first + self.step * stop, self.step)


@dataclass(frozen=True)
class Columns:
    """Columns first, first + step, ... of a part of a checkpoint tensor with `width` columns.

    The part: its rows [top, top + cols), which become the columns here.
    """

    tensor: SourceTensor
    top: int
    width: int
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = True

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        item = ITEM_BYTES[self.dtype]
        span = range(self.top, self.top + self.cols)
        part = read_rows_of(checkpoint, self.tensor, self.width * item, span).view(f"u{item}")
        columns = part[:, self.first :: self.step][:, start:stop]
        return np.ascontiguousarray(columns.T).view(np.uint8)

    def place(self, row: int, col: int) -> str:
        return f"row {self.top + col}, column {self.first + self.step * row}"


@dataclass(frozen=True)
class Mxfp4Rows:
    """Rows first, first + step, ... of tensors of MXFP4 blocks and scales, as bf16."""

    tensor: SourceTensor
    scales: SourceTensor
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = False
    dtype = "BF16"

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        span = range(self.first + self.step * start, self.first + self.step * stop, self.step)
        blocks = read_rows_of(checkpoint, self.tensor, self.cols // 2, span)
        scales = read_rows_of(checkpoint, self.scales, self.cols // mxfp4.BLOCK, span)
        return mxfp4.to_bf16(blocks, scales)

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, element {col}"


@dataclass(frozen=True)
class Fp8Rows:
    """Rows first, first + step, ... of a tensor of FP8 codes with a scale per block, as float32."""

    tensor: SourceTensor
    scales: SourceTensor
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = False
    dtype = "F32"

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        span = range(self.first + self.step * start, self.first + self.step * stop, self.step)
        codes = read_rows_of(checkpoint, self.tensor, self.cols, span)
        weights = fp8.to_float32(codes, self._scales(checkpoint, span))
        return weights.view(np.uint8).reshape(len(span), -1)

    def _scales(self, checkpoint: Source, span: range) -> Floats:
        """The scales of each row, [rows, cols / BLOCK] rounded up."""
        first, last = span[0] // fp8.BLOCK, span[-1] // fp8.BLOCK
        row_bytes = -(-self.cols // fp8.BLOCK) * ITEM_BYTES[self.scales.dtype]
        raw = read_rows_of(checkpoint, self.scales, row_bytes, range(first, last + 1))
        scales = to_float32(raw, self.scales.dtype)
        spread: Floats = scales[np.array(span) // fp8.BLOCK - first]
        return spread

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, column {col}"


@dataclass(frozen=True)
class Transposed:
    """The columns of another source as rows."""

    source: RowSource
    at_once = True

    @property
    def tensor(self) -> SourceTensor:
        return self.source.tensor

    @property
    def rows(self) -> int:
        return self.source.cols

    @property
    def cols(self) -> int:
        return self.source.rows

    @property
    def dtype(self) -> str:
        return self.source.dtype

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        rows = self.source.read(checkpoint, 0, self.source.rows)
        columns = rows.view(f"u{ITEM_BYTES[self.dtype]}")[:, start:stop]
        return np.ascontiguousarray(columns.T).view(np.uint8)

    def place(self, row: int, col: int) -> str:
        return self.source.place(col, row)


def read_rows_of(checkpoint: Source, tensor: SourceTensor, row_bytes: int, rows: range) -> Bytes:
    """Rows of a tensor seen as a matrix of so many bytes a row -> uint8 [len(rows), row_bytes]."""
    first, last = rows[0], rows[-1]
    data = checkpoint.read(tensor, first * row_bytes, (last + 1 - first) * row_bytes)
    return data.reshape(-1, row_bytes)[:: rows.step]


def check_shape(
    tensor: SourceTensor, shape: tuple[int, ...], dtypes: tuple[str, ...] = WEIGHT_TYPES
) -> None:
    """Raises CheckpointError for a type that is not supported, ConfigError for another shape."""
    if tensor.dtype not in dtypes:
        raise CheckpointError(
            "weight type is not supported",
            where=f"{tensor.path}: {tensor.name}",
            expected=" | ".join(dtypes),
            got=tensor.dtype,
        )
    # conv1d weights are [channels, 1, width]: dimensions of 1 carry no data.
    if _squeezed(tensor.shape) != _squeezed(shape):
        raise ConfigError(
            "config contradicts the tensor's shape",
            where=f"{tensor.path}: {tensor.name}",
            expected=list(shape),
            got=list(tensor.shape),
        )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
