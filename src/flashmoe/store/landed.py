"""Landings in NumPy: the slow twin of native/stream/landing.cpp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from flashmoe.quant import mxfp4
from flashmoe.quant.layout import ROWS, Bytes
from flashmoe.store.landing import Landing, Move, Piece, Program, Slice

_GROUP, _CODES = 136, 128  # bytes of a group of 8 rows in mxfp4, and those of its codes


def land(landing: Landing, read: Callable[[Piece], Bytes]) -> Bytes:
    """The record of an expert. read: the bytes of a piece, at least those that are needed.

    Raises ValueError where a weight is not finite.
    """
    record = np.full(landing.nbytes, 0xEE, np.uint8)  # every byte must be written
    for piece in landing.pieces():
        data = read(piece)
        for part in piece.slices:
            run(landing.program, part, data, record)
    settle(landing.program, record)
    return record


def run(program: Program, part: Slice, read: Bytes, record: Bytes) -> None:
    """Carry out a slice: bytes read -> their places in the record."""
    move = program.moves[part.move]
    strides = (ROWS * move.row_bytes, move.row_bytes, move.run, 1)
    shape = (part.count, ROWS, move.groups, move.run)
    rows = as_strided(read[part.start :], shape, strides, writeable=False)
    if move.finite:
        _expect_finite(rows)
    turned = _turned(move, np.ascontiguousarray(rows))
    _blocks(move, part, record, turned.shape[2:])[...] = turned


def _blocks(move: Move, part: Slice, record: Bytes, shape: tuple[int, ...]) -> Bytes:
    """The place of a slice in the record: [blocks, groups, units, 8, unit]."""
    unit = shape[2]
    strides = (move.block_bytes, move.group_bytes, ROWS * unit, unit, 1)
    start = move.at + part.first * move.block_bytes
    return as_strided(record[start:], (part.count, move.groups, *shape), strides)


def _turned(move: Move, rows: Bytes) -> Bytes:
    """[blocks, 8, groups, run] -> [blocks, groups, units, 8, unit]."""
    if move.turn == "deal":
        rows = _dealt(rows)
    unit = move.unit
    if move.turn == "widen":
        rows, unit = (rows.view("<u2").astype("<u4") << 16).view(np.uint8), 2 * unit
    blocks, _, groups, nbytes = rows.shape
    units = rows.reshape(blocks, ROWS, groups, nbytes // unit, unit)
    return np.ascontiguousarray(units.transpose(0, 2, 3, 1, 4))


def _dealt(rows: Bytes) -> Bytes:
    """4 bytes with codes 0 1, 2 3, 4 5, 6 7 (the first in the low half) -> 0 4, 1 5, 2 6, 3 7."""
    four = rows.reshape(*rows.shape[:-1], -1, 4)
    codes = np.stack([four & 15, four >> 4], axis=-1).reshape(*four.shape[:-1], 2, 4)
    dealt: Bytes = (codes[..., 0, :] | codes[..., 1, :] << 4).reshape(rows.shape)
    return dealt


def _expect_finite(rows: Bytes) -> None:
    exponents = np.ascontiguousarray(rows).view("<u2") & 0x7F80
    if (exponents == 0x7F80).any():
        raise ValueError("a weight is not finite")


def settle(program: Program, record: Bytes) -> None:
    """When all slices were run: zeros in the gaps, the encoder's scales in mxfp4."""
    for at, nbytes in program.zeros:
        record[at : at + nbytes] = 0
    for at, groups in program.mxfp4:
        blob = record[at : at + groups * _GROUP]
        weights = _weights(blob.reshape(groups, _GROUP))
        blob[:] = mxfp4.encode(weights, 32)


def _weights(groups: Bytes) -> NDArray[np.float32]:
    """Groups of 8 rows -> float32 [groups * 8, 32]; raises ValueError unless bf16 could hold it."""
    if (groups[:, _CODES:] == 255).any():
        raise ValueError("a scale is NaN")
    with np.errstate(over="ignore"):
        weights = mxfp4.decode(groups.reshape(-1), len(groups) * ROWS, 32, 32)
    if not np.isfinite(weights).all():
        raise ValueError("a weight is not finite")
    return weights
