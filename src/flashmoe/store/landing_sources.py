"""Which sources can be turned into which stored formats while they are read, and how. Pure.

One function per kind of source, in FIELDS: a format that checkpoints hold byte for byte, in another
order, needs no more than that to run in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint import mxfp4
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError
from flashmoe.quant import BLOCK_FORMATS
from flashmoe.quant.layout import ROWS
from flashmoe.store.block_rows import BlockRows, GgufMxfp4Rows
from flashmoe.store.landing import Finite, Landing, Move, Origin, Program, Turn
from flashmoe.store.landing_fields import Field, NotInPlaceError, grouped_fields, nvfp4_fields
from flashmoe.store.plan import CopyBias, EncodeMatrix, Record
from flashmoe.store.quantised import GroupedRows, Nvfp4Rows
from flashmoe.store.row_sources import Mxfp4Rows, Rows, RowSource
from flashmoe.store.sources import exact_format

HINT = "Pack it: `flashmoe pack SOURCE DESTINATION`"
_BLOCK_NAMES = frozenset(format_.name for format_ in BLOCK_FORMATS)


def _bf16(source: Rows) -> Sequence[Field]:
    nbytes = 2 * source.cols
    return [Field(source.tensor, source.first, source.step, nbytes, nbytes, 4, 0, 1, finite="bf16")]


def _mxfp4(source: Mxfp4Rows) -> Sequence[Field]:
    groups, half = source.cols // mxfp4.BLOCK, mxfp4.BLOCK_BYTES
    first, step = source.first, source.step
    return [
        Field(source.tensor, first, step, groups * half, half, 4, 0, groups, turn="deal"),
        Field(source.scales, first, step, groups, 1, 1, ROWS * half, groups),
    ]


def _block_rows(source: BlockRows) -> Sequence[Field]:
    nbytes = source.exact.nbytes(ROWS, source.cols) // ROWS
    return [Field(source.tensor, source.first, source.step, nbytes, nbytes, nbytes, 0, 1)]


def _ggml_mxfp4(source: GgufMxfp4Rows) -> Sequence[Field]:
    groups, size = source.cols // mxfp4.BLOCK, 1 + mxfp4.BLOCK_BYTES
    place = (source.first, source.step)
    return [Field(source.tensor, *place, groups * size, size, size, 0, groups, turn="ggml")]


FIELDS: Mapping[type, Callable[[Any], Sequence[Field]]] = {
    Rows: _bf16,
    Mxfp4Rows: _mxfp4,
    GroupedRows: grouped_fields,
    Nvfp4Rows: nvfp4_fields,
    BlockRows: _block_rows,
    GgufMxfp4Rows: _ggml_mxfp4,
}
"""By kind of source: its fields in the format that holds it exactly. They raise NotInPlaceError."""


def make_landing(record: Record, record_bytes: int) -> Landing:
    """The landing of a record as `pack` would write it.

    Raises CheckpointError, naming file and tensor, where the bytes cannot be turned into it.
    """
    moves: list[Move] = []
    origins: list[Origin] = []
    for part in record:
        made = _bias(part) if isinstance(part, CopyBias) else _matrix(part)
        for move, origin in made:
            moves.append(move)
            origins.append(origin)
    blobs, gaps = tuple(_mxfp4_blobs(record)), _gaps(record, record_bytes)
    return Landing(Program(record_bytes, tuple(moves), blobs, gaps), tuple(origins))


@dataclass(frozen=True)
class _Target:
    """Where the rows of a source lie in a record; bytes as in Move, apart: None for units."""

    rows: int
    at: int
    group_bytes: int
    block_bytes: int
    apart: int | None = None


def _matrix(part: EncodeMatrix) -> Iterator[tuple[Move, Origin]]:
    block = part.format.nbytes(ROWS, part.cols)
    at, turns = part.at, len(part.sources) if part.interleave else 1
    apart = block // ROWS if part.format.name in _BLOCK_NAMES else None
    for source in part.sources:
        fields = _fields(source, part)
        count = fields[0].groups * fields[0].times
        target = _Target(source.rows, at, (apart or block) // count, block * turns, apart)
        for field in fields:
            yield _move(field, target)
        at += block if part.interleave else source.rows // ROWS * block


def _fields(source: RowSource, part: EncodeMatrix) -> Sequence[Field]:
    """Of a source in the format of its matrix; a CheckpointError where it cannot become that."""
    make = FIELDS.get(type(source))
    if make is None or exact_format(source) is None:
        raise _refused(source.tensor, _reason(source))
    if exact_format(source) != part.format:
        raise _refused(source.tensor, "the experts differ in format and must be converted")
    if source.rows % ROWS:
        raise _refused(source.tensor, f"{source.rows} rows are not whole blocks")
    try:
        return make(source)
    except NotInPlaceError as cause:
        raise _refused(source.tensor, str(cause)) from cause


def _reason(source: RowSource) -> str:
    if isinstance(source, Rows) and source.dtype != "BF16":
        return f"no stored format holds {source.dtype} weights exactly"
    return f"{source.tensor.dtype} weights in this layout ({type(source).__name__}) must be encoded"


def _refused(tensor: Tensor, reason: str) -> CheckpointError:
    where = f"{tensor.path}: {tensor.name}"
    return CheckpointError(f"experts cannot run in place: {reason}", where=where, hint=HINT)


def _move(field: Field, target: _Target) -> tuple[Move, Origin]:
    if field.tensor.offset == 0:  # no file has weights where its header is
        raise _refused(field.tensor, "the tensor is computed from others")
    wide = 2 if field.turn == "widen" else 1
    move = Move(
        turn=field.turn,
        finite=field.finite,
        unit=field.unit if target.apart is None else field.run,
        run=field.run,
        groups=field.groups,
        rows=target.rows,
        row_bytes=field.step * field.row_bytes,
        at=target.at + field.at,
        group_bytes=target.group_bytes,
        block_bytes=target.block_bytes,
        apart=target.apart or field.unit * wide,
        times=field.times,
    )
    start = field.tensor.offset + field.first * field.row_bytes
    return move, Origin(field.tensor.path, start, field.tensor.name)


def _bias(part: CopyBias) -> Iterator[tuple[Move, Origin]]:
    """Each number is a row of its own: blocks of 8 of them, gate and up in turn where paired."""
    source, turns = part.source, 2 if part.paired else 1
    if source.dtype not in ("BF16", "F32"):
        raise _refused(source.tensor, f"{source.dtype} biases must be converted")
    turn, finite, item = _BIASES[source.dtype]
    count, start = source.cols // turns, source.first * source.cols
    if count % ROWS:
        raise _refused(source.tensor, f"{count} biases are not whole blocks")
    for which in range(turns):
        first = start + which
        field = Field(source.tensor, first, turns, item, item, item, 0, 1, turn, finite)
        yield _move(field, _Target(count, part.at + 4 * ROWS * which, 0, 4 * ROWS * turns))


_BIASES: Mapping[str, tuple[Turn, Finite, int]] = {
    "BF16": ("widen", "bf16", 2),
    "F32": ("copy", "f32", 4),
}


def _mxfp4_blobs(record: Record) -> Iterator[tuple[int, int]]:
    for part in record:
        if isinstance(part, EncodeMatrix) and part.format.name == "mxfp4":
            yield part.at, part.rows // ROWS * (part.cols // part.format.group)


def _gaps(record: Record, record_bytes: int) -> tuple[tuple[int, int], ...]:
    """(at, bytes) between the parts of a record and behind them."""
    ends = [(part.at, part.at + part.nbytes) for part in record] + [(record_bytes, record_bytes)]
    position, gaps = 0, []
    for begin, end in ends:
        if begin > position:
            gaps.append((position, begin - position))
        position = end
    return tuple(gaps)
