"""Memory for the temporaries of one layer: taken in order, given back all at once.

Fresh memory costs a page fault per 4 KiB on first touch, which on prefill sizes is slower than the
kernels that fill it; so it is taken once and used again.
"""

from __future__ import annotations

import numpy as np

from flashmoe.ops.base import Floats

_ALIGN_FLOATS = 16  # 64 bytes: a cache line


class Scratch:
    """A growing block of float32; `take` hands out pieces, `reset` frees all of them."""

    def __init__(self) -> None:
        self._block = np.empty(0, dtype=np.float32)
        self._used = 0
        self._wanted = 0
        self.peak_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the block, with what did not fit it."""
        return max(self._block.nbytes, 4 * self._wanted)

    def reset(self) -> None:
        """Free every piece; the block grows to what the last round wanted."""
        self.peak_bytes = max(self.peak_bytes, 4 * self._wanted)
        if self._wanted > self._block.size:
            self._block = np.empty(0, dtype=np.float32)  # free before taking the larger one
            self._block = np.empty(self._wanted, dtype=np.float32)
        self._used = self._wanted = 0

    def release(self) -> None:
        """Free every piece and the block."""
        self.peak_bytes = max(self.peak_bytes, 4 * self._wanted)
        self._block = np.empty(0, dtype=np.float32)
        self._used = self._wanted = 0

    def take(self, *shape: int) -> Floats:
        """An uninitialised float32 array of this shape, valid until `reset`."""
        size = shape[0]
        for extent in shape[1:]:
            size *= extent
        padded = -(-size // _ALIGN_FLOATS) * _ALIGN_FLOATS
        self._wanted += padded
        if self._used + padded > self._block.size:
            return np.empty(shape, dtype=np.float32)
        piece = self._block[self._used : self._used + size]
        self._used += padded
        return piece.reshape(shape)
