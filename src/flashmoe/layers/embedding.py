"""The input embedding: a table in memory, or rows fetched from where it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops.base import Floats, Ints, Matrix, Ops
from flashmoe.quant import Format
from flashmoe.quant.layout import ROWS, Bytes


class Embedding(Protocol):
    """Token ids to the first hidden states."""

    def rows(self, ids: Ints, ops: Ops) -> Floats:
        """ids int32 [T] -> float32 [T, H]; not scratch."""


@dataclass(frozen=True)
class ResidentEmbedding:
    """A table [vocab_size, H] in memory."""

    table: Matrix

    def rows(self, ids: Ints, ops: Ops) -> Floats:
        return ops.embed(self.table, ids)


class BlockSource(Protocol):
    """Where blocks of 8 rows of the table come from (store.rows.StoredRows)."""

    @property
    def format(self) -> Format: ...
    @property
    def cols(self) -> int: ...

    @property
    def blocks(self) -> Callable[[NDArray[np.integer]], Bytes]:
        """Blocks by number [n] -> their bytes in kernel layout."""


@dataclass(frozen=True)
class StoredEmbedding:
    """A table that stays where it is stored. Its rows are the same bits as in memory.

    piece: tokens whose blocks are in memory together.
    """

    source: BlockSource
    piece: int

    def rows(self, ids: Ints, ops: Ops) -> Floats:
        h: Floats = np.empty((len(ids), self.source.cols), dtype=np.float32)
        for begin in range(0, len(ids), self.piece):
            part = slice(begin, begin + self.piece)
            h[part] = self._piece(ids[part], ops)
        return h

    def _piece(self, ids: Ints, ops: Ops) -> Floats:
        start = perf_counter()
        numbers, places = np.unique(ids // ROWS, return_inverse=True)
        data = self.source.blocks(numbers)
        ops.clock.add(perf_counter() - start, "disk_wait")
        table = ops.matrix(self.source.format, len(numbers) * ROWS, self.source.cols, data)
        return ops.embed(table, (places * ROWS + ids % ROWS).astype(np.int32))
