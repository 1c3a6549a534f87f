"""Weight formats: byte layout, encoder and decoder in NumPy: the truth for the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from flashmoe.errors import UsageError
from flashmoe.quant import bf16, layout, mxfp4, q4, q8
from flashmoe.quant.layout import Bytes, Floats

FORMATS: dict[str, ModuleType] = {module.NAME: module for module in (bf16, q8, q4, mxfp4)}


def groups(name: str) -> tuple[int, ...]:
    """The group sizes, in columns, that a registered format comes in; (0,) if it has no groups."""
    sizes: tuple[int, ...] = FORMATS[name].GROUPS
    return sizes


@dataclass(frozen=True)
class Format:
    """How a matrix is stored: a registered name and, for grouped formats, the columns per group."""

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
        return cols > 0 and cols % (self.group or 2) == 0

    def nbytes(self, rows: int, cols: int) -> int:
        """Stored bytes of a [rows, cols] matrix, padding rows included."""
        row_bytes: int = FORMATS[self.name].row_bytes(cols, self.group)
        return layout.row_blocks(rows) * layout.ROWS * row_bytes

    def encode(self, w: Floats) -> Bytes:
        """w float32 [rows, cols], finite -> uint8 [nbytes(rows, cols)]."""
        data: Bytes = FORMATS[self.name].encode(np.asarray(w, dtype=np.float32), self.group)
        return data

    def decode(self, data: Bytes, rows: int, cols: int) -> Floats:
        """The weights that the stored bytes mean -> float32 [rows, cols]."""
        w: Floats = FORMATS[self.name].decode(data, rows, cols, self.group)
        return w
