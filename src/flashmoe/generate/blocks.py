"""What a sequence's state holds, cut up to be kept: rows of 64 positions, and what has no rows.

Keys and values of full attention, and latent vectors, are rows per position: a block of 64 belongs
to its tokens and those before. So are compressed entries, which belong to the block that finished
them. The state of a delta rule, the ring of a window and what entries under way are made of belong
to one position only: they are `fixed`, and can be taken only where a pass has ended.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from flashmoe.layers.state import (
    CompressedCache,
    DeltaState,
    IndexedCache,
    KvCache,
    LatentCache,
    SequenceState,
)
from flashmoe.ops.base import Array
from flashmoe.ops.parts import CHUNK_STEP as BLOCK

Bytes = NDArray[np.uint8]

__all__ = ["BLOCK", "chain", "fixed_arrays", "pack", "row_arrays", "unpack"]


def row_arrays(state: SequenceState, block: int) -> list[Array]:
    """Views of the rows of a block's 64 positions, layer by layer."""
    rows = slice(block * BLOCK, (block + 1) * BLOCK)
    arrays: list[Array] = []
    for layer in state.layers:
        if isinstance(layer, LatentCache):
            arrays.append(layer.rows[:, rows])
            if isinstance(layer, IndexedCache):
                arrays.append(layer.index_keys[rows])
        elif isinstance(layer, CompressedCache):
            arrays += [one.of_positions(rows.start, rows.stop) for one in layer.compressed]
        elif isinstance(layer, KvCache) and not layer.ring:
            arrays += [layer.k[:, rows], layer.v[:, rows]]
    return arrays


def fixed_arrays(state: SequenceState) -> list[Array]:
    """Views of what belongs to the present position only; empty where rows are all there is."""
    arrays: list[Array] = []
    for layer in state.layers:
        if isinstance(layer, DeltaState):
            arrays += [layer.conv, layer.s]
        elif isinstance(layer, CompressedCache):
            arrays += [layer.rows, *(one.tail for one in layer.compressed)]
        elif isinstance(layer, KvCache) and layer.ring:
            arrays += [layer.k, layer.v]
    return arrays


def pack(arrays: Sequence[Array]) -> Bytes:
    """Their bytes, one after the other, in memory that goes back to the system when let go."""
    buffer = np.frombuffer(mmap.mmap(-1, max(1, sum(a.nbytes for a in arrays))), dtype=np.uint8)
    begin = 0
    for array in arrays:
        part = buffer[begin : begin + array.nbytes]
        part.view(array.dtype).reshape(array.shape)[...] = array
        begin += array.nbytes
    return buffer


def unpack(buffer: Bytes, arrays: Sequence[Array]) -> None:
    """The reverse of `pack`."""
    begin = 0
    for array in arrays:
        part = buffer[begin : begin + array.nbytes]
        array[...] = part.view(array.dtype).reshape(array.shape)
        begin += array.nbytes


def chain(root: bytes, ids: Sequence[int], blocks: int) -> list[bytes]:
    """A name for each of the first blocks of ids: of its tokens and all before, under `root`."""
    tokens = np.asarray(ids[: blocks * BLOCK], dtype="<i4")
    names, last = [], root
    for begin in range(0, blocks * BLOCK, BLOCK):
        last = blake2b(last + tokens[begin : begin + BLOCK].tobytes(), digest_size=32).digest()
        names.append(last)
    return names
