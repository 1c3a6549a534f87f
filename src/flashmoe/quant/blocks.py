"""Block formats: a stored block holds the bytes of 8 rows of the source, one after the other.

A row is a sequence of runs: `nbytes` bytes that mean `cols` columns. So whatever another program
has quantised can be kept as it is. All of them share one kernel (native/cpu/blocks), whose inputs
stay floats; docs/kernels.md says how to add a format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flashmoe.errors import UsageError
from flashmoe.quant.layout import ROWS, Bytes, Floats, row_blocks


@dataclass(frozen=True)
class BlockFormat:
    """A block format by name; unpack: runs uint8 [n, nbytes] -> weights float32 [n, cols].

    The order of unpack's float operations is part of the format: kernels decode to the same bits.
    """

    name: str
    cols: int
    nbytes: int
    unpack: Callable[[Bytes], Floats]

    GROUPS: ClassVar = (0,)

    def step(self, group: int) -> int:
        """Rows have a multiple of that many columns."""
        return self.cols

    def row_bytes(self, cols: int, group: int) -> int:
        """Stored bytes per row; cols must be a multiple of self.cols."""
        return cols // self.cols * self.nbytes

    def encode(self, w: Floats, group: int) -> Bytes:
        """Raises UsageError: what the source has is copied, other weights cannot become this."""
        raise UsageError(
            "weights cannot be converted to a block format", where=self.name, expected="q4 | q8"
        )

    def decode(self, data: Bytes, rows: int, cols: int, group: int) -> Floats:
        """The weights that the bytes mean -> float32 [rows, cols]."""
        runs = data.reshape(-1, self.nbytes)[: rows * cols // self.cols]
        return self.unpack(runs).reshape(rows, cols)


def pad_rows(rows: Bytes) -> Bytes:
    """Source rows uint8 [rows, row_bytes] -> stored bytes: rows of zeros fill the last block."""
    missing = row_blocks(len(rows)) * ROWS - len(rows)
    return np.pad(rows, ((0, missing), (0, 0))).reshape(-1) if missing else rows.reshape(-1)


def f16(data: Bytes) -> Floats:
    """Little-endian float16 bytes [..., 2 n] -> float32 [..., n]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)
