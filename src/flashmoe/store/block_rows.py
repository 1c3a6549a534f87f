"""Rows of tensors that GGUF files hold: block formats, and MXFP4 in GGUF's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashmoe.checkpoint import mxfp4
from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.safetensors import Tensor as SourceTensor
from flashmoe.quant import BLOCK_FORMATS, FORMATS, Format
from flashmoe.quant.layout import Bytes
from flashmoe.store.encode import decode_rows
from flashmoe.store.row_sources import RowSource, read_rows_of


@dataclass(frozen=True)
class BlockRows:
    """Rows first, first + step, ... of a tensor in a block format, as float32 or as stored."""

    tensor: SourceTensor
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = False
    dtype = "F32"

    @property
    def exact(self) -> Format:
        """The format that keeps the stored bytes."""
        return Format(self.tensor.dtype.lower())

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        weights = decode_rows(self.exact, self.read_kept(checkpoint, start, stop), self.cols)
        return weights.view(np.uint8).reshape(stop - start, -1)

    def read_kept(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        """Rows [start, stop) as they are stored -> uint8 [stop - start, row bytes]."""
        size = FORMATS[self.exact.name].row_bytes(self.cols, 0)
        return read_rows_of(checkpoint, self.tensor, size, _span(self, start, stop))

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, column {col}"


@dataclass(frozen=True)
class GgufMxfp4Rows:
    """Rows first, first + step, ... of GGUF's MXFP4, as bf16: per 32 columns a scale and 16 bytes,
    whose low nibbles are columns 0 to 15 and whose high ones are the others."""

    tensor: SourceTensor
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = False
    dtype = "BF16"

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        groups, count = self.cols // mxfp4.BLOCK, stop - start
        size = 1 + mxfp4.BLOCK_BYTES
        raw = read_rows_of(checkpoint, self.tensor, groups * size, _span(self, start, stop))
        raw = raw.reshape(count, groups, size)
        codes = np.concatenate([raw[..., 1:] & 15, raw[..., 1:] >> 4], axis=2)
        pairs = codes[..., ::2] | codes[..., 1::2] << 4
        return mxfp4.to_bf16(pairs.reshape(count, -1), raw[..., 0])

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, element {col}"


def _span(source: BlockRows | GgufMxfp4Rows, start: int, stop: int) -> range:
    first, step = source.first, source.step
    return range(first + step * start, first + step * stop, step)


ROWS_OF: dict[str, Callable[..., RowSource]] = {
    **{format_.name.upper(): BlockRows for format_ in BLOCK_FORMATS},
    "MXFP4": GgufMxfp4Rows,
}
"""What reads the rows of a tensor, by its type (tensor, first, rows, cols, step)."""
