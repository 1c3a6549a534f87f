"""Landings in NumPy: the slow twin of native/stream/landing.cpp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from flashmoe.quant import mxfp4
from flashmoe.quant.affine import narrow, widen
from flashmoe.quant.layout import ROWS, Bytes, from_bf16
from flashmoe.store.landing import Landing, Move, Piece, Program, Slice

_GROUP, _CODES = 136, 128  # bytes of a group of 8 rows in mxfp4, and those of its codes
_HALVES = {"bias4": 8, "bias8": 128}


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
    if move.turn == "ggml":
        groups = _from_ggml(rows)
        _blocks(move, part, record, groups.shape)[...] = groups
        return
    turned = _turned(move, np.ascontiguousarray(rows).repeat(move.times, axis=2))
    unit = 2 * move.unit if move.turn == "widen" else move.unit
    units = turned.reshape(*turned.shape[:3], -1, unit).transpose(0, 2, 3, 1, 4)
    _blocks(move, part, record, units.shape)[...] = units


def _blocks(move: Move, part: Slice, record: Bytes, shape: tuple[int, ...]) -> Bytes:
    """The place of a slice in the record: [blocks, groups, units, 8, unit]."""
    strides = (move.block_bytes, move.group_bytes, ROWS * shape[-1], move.apart, 1)
    return as_strided(record[move.at + part.first * move.block_bytes :], shape, strides)


def _turned(move: Move, rows: Bytes) -> Bytes:
    """[blocks, 8, groups, run] -> the same with what the turn makes of each run."""
    _expect_finite(move, rows)
    if move.turn == "deal":
        return _dealt(rows)
    if move.turn == "widen":
        return np.ascontiguousarray(from_bf16(rows.view("<u2"))).view(np.uint8)
    if move.turn == "flip":
        return rows ^ np.uint8(128)
    if move.turn in _HALVES:
        rows = _biases(rows, move.finite, _HALVES[move.turn])
        _expect_finite(move, rows)
    return rows


def _from_ggml(rows: Bytes) -> Bytes:
    """[blocks, 8, groups, 17]: a scale, then codes j and 16 + j -> groups as they are stored, of
    8 x 17 bytes [blocks, groups, 1, 8, 17]: 4 units of 8 rows, then 8 scales."""
    blocks, _, count, size = rows.shape
    codes = np.concatenate([rows[..., 1:] & 15, rows[..., 1:] >> 4], axis=-1)
    eights = codes.reshape(blocks, ROWS, count, 4, 2, 4)
    units = eights[..., 0, :] | eights[..., 1, :] << 4
    stored = units.transpose(0, 2, 3, 1, 4).reshape(blocks, count, -1)
    scales = rows[..., 0].transpose(0, 2, 1)
    both: Bytes = np.concatenate([stored, scales], axis=2)
    return both.reshape(blocks, count, 1, ROWS, size)


def _dealt(rows: Bytes) -> Bytes:
    """4 bytes with codes 0 1, 2 3, 4 5, 6 7 (the first in the low half) -> 0 4, 1 5, 2 6, 3 7."""
    four = rows.reshape(*rows.shape[:-1], -1, 4)
    codes = np.stack([four & 15, four >> 4], axis=-1).reshape(*four.shape[:-1], 2, 4)
    dealt: Bytes = (codes[..., 0, :] | codes[..., 1, :] << 4).reshape(rows.shape)
    return dealt


def _biases(scales: Bytes, kind: str, half: int) -> Bytes:
    with np.errstate(over="ignore"):
        return narrow(-np.float32(half) * widen(scales, kind), kind)


def _expect_finite(move: Move, rows: Bytes) -> None:
    if move.finite == "any":
        return
    if move.finite == "e4m3":
        bad = (rows & 127) == 127
    else:
        values = widen(rows, "f32" if move.finite == "divisor" else move.finite)
        bad = ~np.isfinite(values) | ((values == 0) & (move.finite == "divisor"))
    if bad.any():
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
