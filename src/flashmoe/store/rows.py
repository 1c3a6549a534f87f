"""Rows of a stored matrix, read when they are asked for instead of being held in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashmoe.files import read_exactly, storage_errors
from flashmoe.quant import Format
from flashmoe.quant.layout import ROWS, Bytes
from flashmoe.store import format as fmt

PIECE_BLOCKS = 64
"""Blocks that a caller should ask for at a time; their reads are under way together."""


class StoredRows:
    """The blocks of 8 rows of a matrix in resident.safetensors; used by one thread.

    Blocks that are often asked for stay in the page cache for as long as memory allows. Bytes are
    not checked here: PackedModel.load_resident reads and checks the whole matrix once.
    """

    def __init__(self, path: Path, offset: int, matrix: fmt.Matrix) -> None:
        self.format: Format = matrix.format
        self.cols = matrix.cols
        self._path, self._offset = path, offset
        self._block_bytes = matrix.format.nbytes(ROWS, matrix.cols)
        self._fd: int | None = None

    @property
    def buffer_bytes(self) -> int:
        """Memory that a call for PIECE_BLOCKS blocks takes."""
        return PIECE_BLOCKS * self._block_bytes

    def blocks(self, numbers: NDArray[np.integer]) -> Bytes:
        """Blocks by number [n] -> their bytes, one after the other, in kernel layout.

        Raises StorageError if the file cannot be read or ends too early.
        """
        fd, size = self._open(), self._block_bytes
        offsets = [self._offset + int(number) * size for number in numbers]
        if len(offsets) > 1:
            for offset in offsets:
                os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)
        data = np.empty((len(offsets), size), dtype=np.uint8)
        for row, offset in zip(data, offsets, strict=True):
            read_exactly(fd, row.data, offset, self._path)
        return data.reshape(-1)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            with storage_errors("cannot open", self._path):
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            # Without read-ahead: the neighbours of a token's row are of no use.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        return self._fd
