"""Weight formats: byte layout, encoder and decoder in NumPy: the truth for the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashmoe.errors import UsageError
from flashmoe.quant import (
    affine,
    bf16,
    codebook,
    gguf_iq4,
    gguf_k,
    gguf_legacy,
    layout,
    mxfp4,
    nvfp4,
    q4,
    q8,
)
from flashmoe.quant.layout import Bytes, Floats


class Codec(Protocol):
    """What a format is: a module of this package, or a BlockFormat."""

    @property
    def GROUPS(self) -> tuple[int, ...]:
        """The group sizes, in columns, that it comes in; (0,) if inputs are not quantised."""

    def step(self, group: int) -> int:
        """Rows have a multiple of that many columns."""

    def row_bytes(self, cols: int, group: int) -> int:
        """Stored bytes of a row."""

    def encode(self, w: Floats, group: int) -> Bytes:
        """w float32 [rows, cols] -> stored bytes."""

    def decode(self, data: Bytes, rows: int, cols: int, group: int) -> Floats:
        """Stored bytes -> float32 [rows, cols]."""


ENCODED: dict[str, Codec] = {
    bf16.NAME: bf16,
    q8.NAME: q8,
    q4.NAME: q4,
    mxfp4.NAME: mxfp4,
    **{book.NAME: book for book in codebook.BOOKS.values()},
}
"""Formats that any weights can be converted to; docs/format.md lists them and the others."""
BLOCK_FORMATS = (
    *gguf_legacy.FORMATS,
    *gguf_k.FORMATS,
    *gguf_iq4.FORMATS,
    *affine.FORMATS,
    *nvfp4.FORMATS,
)
FORMATS: dict[str, Codec] = ENCODED | {format_.name: format_ for format_ in BLOCK_FORMATS}


def groups(name: str) -> tuple[int, ...]:
    """The group sizes, in columns, that a registered format comes in; (0,) if it has no groups."""
    return FORMATS[name].GROUPS


@dataclass(frozen=True)
class Format:
    """How a matrix is stored: a registered name and, if inputs are quantised, the group for it."""

    name: str
    group: int = 0

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise UsageError(
                "unknown weight format", expected=" | ".join(sorted(FORMATS)), got=self.name
            )
        if self.group not in groups(self.name):
            expected = " | ".join(map(str, groups(self.name)))
            raise UsageError("bad group size", where=self.name, expected=expected, got=self.group)

    def fits(self, cols: int) -> bool:
        """Whether rows of `cols` columns can be stored."""
        return cols > 0 and cols % self.step == 0

    @property
    def step(self) -> int:
        """Rows have a multiple of that many columns."""
        return FORMATS[self.name].step(self.group)

    def nbytes(self, rows: int, cols: int) -> int:
        """Stored bytes of a [rows, cols] matrix, padding rows included."""
        return (
            layout.row_blocks(rows) * layout.ROWS * FORMATS[self.name].row_bytes(cols, self.group)
        )

    def encode(self, w: Floats) -> Bytes:
        """w float32 [rows, cols], finite -> uint8 [nbytes(rows, cols)]."""
        return FORMATS[self.name].encode(np.asarray(w, dtype=np.float32), self.group)

    def decode(self, data: Bytes, rows: int, cols: int) -> Floats:
        """The weights that the stored bytes mean -> float32 [rows, cols]."""
        return FORMATS[self.name].decode(data, rows, cols, self.group)
