"""Produces the bytes of a plan item from the checkpoint in bounded pieces. Reads, never writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flashmoe import _native
from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.safetensors import ITEM_BYTES, to_float32
from flashmoe.errors import NonFiniteError
from flashmoe.quant import q4
from flashmoe.quant.blocks import pad_rows
from flashmoe.quant.layout import Bytes, Floats
from flashmoe.store.encode import BadWeight, check_finite, decode_rows, encode
from flashmoe.store.format import INTERLEAVE
from flashmoe.store.plan import CopyBias, CopyVector, EncodeMatrix, Item
from flashmoe.store.row_sources import Rows, RowSource
from flashmoe.store.sources import KeptRows

# Source bytes per piece: with the encoder's temporaries well under 1 GB.
PIECE_BYTES = 8 << 20
# Pieces end where both the kernels' blocks and pairs of interleaved blocks end.
PIECE_ROWS = 2 * INTERLEAVE


def item_pieces(pool: _native.Pool, checkpoint: Source, item: Item) -> Iterator[Bytes]:
    """The item.nbytes bytes of an item in order, padding included, as uint8 arrays.

    Raises:
        NonFiniteError: a weight is NaN, infinite or beyond bf16; names tensor, row and column.
    """
    position = 0
    if isinstance(item.parts, CopyVector):
        yield _vector(checkpoint, item.parts)
        return
    for part in item.parts:
        yield from _zeros(part.at - position)
        if isinstance(part, CopyBias):
            yield _bias(checkpoint, part)
        else:
            yield from _matrix_pieces(pool, checkpoint, part)
        position = part.at + part.nbytes
    yield from _zeros(item.nbytes - position)


def _zeros(count: int) -> Iterator[Bytes]:
    if count:
        yield np.zeros(count, np.uint8)


def _vector(checkpoint: Source, part: CopyVector) -> Bytes:
    return _bytes(_floats(checkpoint, part.source) + np.float32(part.add))


def _bias(checkpoint: Source, part: CopyBias) -> Bytes:
    values = np.stack([_floats(checkpoint, source) for source in part.sources])
    if len(part.sources) > 1:
        values = values.reshape(2, -1, INTERLEAVE).swapaxes(0, 1)
    elif part.paired:
        values = values.reshape(-1, INTERLEAVE, 2).swapaxes(1, 2)
    return _bytes(values)


def _floats(checkpoint: Source, source: Rows) -> Floats:
    """The only row of a source -> finite float32 [1, cols]."""
    values = to_float32(source.read(checkpoint, 0, 1), source.dtype)
    try:
        check_finite(values)
    except BadWeight as cause:
        raise _non_finite(source, cause.row, cause) from cause
    return values


def _bytes(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, dtype="<f4").view(np.uint8).reshape(-1)


def _matrix_pieces(pool: _native.Pool, checkpoint: Source, part: EncodeMatrix) -> Iterator[Bytes]:
    step = _piece_rows(part)
    for start in range(0, part.rows, step):
        yield encoded_rows(pool, checkpoint, part, start, min(start + step, part.rows))


def encoded_rows(
    pool: _native.Pool, checkpoint: Source, part: EncodeMatrix, start: int, stop: int
) -> Bytes:
    """Rows [start, stop) of a matrix, from a block of 8 on -> their stored bytes.

    Raises:
        NonFiniteError: a weight is NaN, infinite or beyond bf16.
    """
    if part.copies:
        return _kept_piece(checkpoint, part, start, stop)
    raw = read_rows(checkpoint, part, start, stop)
    out = np.empty(part.format.nbytes(stop - start, part.cols), np.uint8)
    try:
        encode(pool, part.format, raw, part.sources[0].dtype, out)
    except BadWeight as cause:
        source, row = _locate(part, start + cause.row)
        raise _non_finite(source, row, cause) from cause
    return out


def _kept_piece(checkpoint: Source, part: EncodeMatrix, start: int, stop: int) -> Bytes:
    rows = read_rows(checkpoint, part, start, stop)
    out = q4.from_runs(rows, part.format.group) if part.format.name == "q4" else pad_rows(rows)
    try:
        if part.format.name == "q4":
            check_finite(part.format.decode(out, stop - start, part.cols))
        else:
            check_finite(decode_rows(part.format, rows, part.cols))
    except BadWeight as cause:
        source, row = _locate(part, start + cause.row)
        raise _non_finite(source, row, cause) from cause
    return out


def _read(checkpoint: Source, part: EncodeMatrix, source: RowSource, low: int, high: int) -> Bytes:
    if part.copies:
        assert isinstance(source, KeptRows)
        return source.read_kept(checkpoint, low, high)
    return source.read(checkpoint, low, high)


def _piece_rows(part: EncodeMatrix) -> int:
    if any(source.at_once for source in part.sources):
        return part.rows
    row_bytes = part.cols * ITEM_BYTES[part.sources[0].dtype]
    return max(PIECE_BYTES // row_bytes // PIECE_ROWS, 1) * PIECE_ROWS


def read_rows(checkpoint: Source, part: EncodeMatrix, start: int, stop: int) -> Bytes:
    """Rows [start, stop) of the matrix to encode -> checkpoint bytes, uint8 [rows, row_bytes]."""
    if part.interleave:
        halves = [_read(checkpoint, part, source, start // 2, stop // 2) for source in part.sources]
        blocks = [half.reshape(-1, INTERLEAVE, half.shape[1]) for half in halves]
        return np.stack(blocks, axis=1).reshape(stop - start, -1)
    pieces, first = [], 0
    for source in part.sources:
        low, high = max(start - first, 0), min(stop - first, source.rows)
        if low < high:
            pieces.append(_read(checkpoint, part, source, low, high))
        first += source.rows
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _locate(part: EncodeMatrix, row: int) -> tuple[RowSource, int]:
    """Source and row within it that row `row` of the matrix to encode comes from."""
    if part.interleave:
        block, within = divmod(row, INTERLEAVE)
        return part.sources[block % 2], block // 2 * INTERLEAVE + within
    for source in part.sources:
        if row < source.rows:
            return source, row
        row -= source.rows
    raise AssertionError("row is outside of the matrix")


def _non_finite(source: RowSource, row: int, cause: BadWeight) -> NonFiniteError:
    return NonFiniteError(
        "weight is not finite or too large",
        where=f"{source.tensor.path}: {source.tensor.name}",
        got=f"{cause.value} at {source.place(row, cause.col)}",
    )
