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
from flashmoe.quant import Format
from flashmoe.quant.layout import ROWS
from flashmoe.store.landing import Landing, Move, Origin, Program, Turn
from flashmoe.store.plan import CopyBias, EncodeMatrix, Record
from flashmoe.store.row_sources import Mxfp4Rows, Rows, RowSource

HINT = "Pack it: `flashmoe pack SOURCE DESTINATION`"


@dataclass(frozen=True)
class Field:
    """One kind of a matrix's numbers: where a tensor has it, and where a group of a block has it.

    first, step: rows of the tensor as a matrix of row_bytes per row. run: bytes of a row in a
    group. at: within a group of the stored form.
    """

    tensor: Tensor
    first: int
    step: int
    row_bytes: int
    run: int
    unit: int
    at: int
    turn: Turn = "copy"
    finite: bool = False


Fields = Callable[[Any, Format], Sequence[Field]]


def expert_format(source: RowSource) -> Format:
    """The stored format that holds a source's weights exactly and that its bytes can be turned
    into; a CheckpointError with the reason where there is none."""
    if isinstance(source, Mxfp4Rows):
        return Format("mxfp4", mxfp4.BLOCK)
    if isinstance(source, Rows) and source.dtype == "BF16":
        return Format("bf16")
    raise _refused(source.tensor, _reason(source))


def _reason(source: RowSource) -> str:
    if isinstance(source, Rows):
        return f"no stored format holds {source.dtype} weights exactly"
    return f"{source.tensor.dtype} weights in this layout ({type(source).__name__}) must be encoded"


def _refused(tensor: Tensor, reason: str) -> CheckpointError:
    where = f"{tensor.path}: {tensor.name}"
    return CheckpointError(f"experts cannot run in place: {reason}", where=where, hint=HINT)


def _bf16(source: Rows, format_: Format) -> Sequence[Field]:
    nbytes = 2 * source.cols
    return [Field(source.tensor, source.first, source.step, nbytes, nbytes, 4, 0, finite=True)]


def _mxfp4(source: Mxfp4Rows, format_: Format) -> Sequence[Field]:
    groups, half = source.cols // mxfp4.BLOCK, mxfp4.BLOCK_BYTES
    first, step = source.first, source.step
    return [
        Field(source.tensor, first, step, groups * half, half, 4, 0, turn="deal"),
        Field(source.scales, first, step, groups, 1, 1, ROWS * half),
    ]


FIELDS: Mapping[tuple[type, str], Fields] = {
    (Rows, "bf16"): _bf16,
    (Mxfp4Rows, "mxfp4"): _mxfp4,
}


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


def _matrix(part: EncodeMatrix) -> Iterator[tuple[Move, Origin]]:
    block = part.format.nbytes(ROWS, part.cols)
    groups = part.cols // (part.format.group or part.cols)
    at, turns = part.at, len(part.sources) if part.interleave else 1
    for source in part.sources:
        fields = FIELDS.get((type(source), part.format.name))
        if fields is None or source.rows % ROWS:
            reason = (
                _reason(source) if fields is None else f"{source.rows} rows are not whole blocks"
            )
            raise _refused(source.tensor, reason)
        for field in fields(source, part.format):
            yield _move(field, source.rows, groups, at, block // groups, block * turns)
        at += block if part.interleave else source.rows // ROWS * block


def _move(
    field: Field, rows: int, groups: int, at: int, group_bytes: int, block_bytes: int
) -> tuple[Move, Origin]:
    move = Move(
        turn=field.turn,
        finite=field.finite,
        unit=field.unit,
        run=field.run,
        groups=groups,
        rows=rows,
        row_bytes=field.step * field.row_bytes,
        at=at + field.at,
        group_bytes=group_bytes,
        block_bytes=block_bytes,
    )
    start = field.tensor.offset + field.first * field.row_bytes
    return move, Origin(field.tensor.path, start, field.tensor.name)


def _bias(part: CopyBias) -> Iterator[tuple[Move, Origin]]:
    """Each number is a row of its own: blocks of 8 of them, gate and up in turn where paired."""
    source, turns = part.source, 2 if part.paired else 1
    if source.dtype not in ("BF16", "F32"):
        raise _refused(source.tensor, f"{source.dtype} biases must be converted")
    turn: Turn = "widen" if source.dtype == "BF16" else "copy"
    item = 2 if turn == "widen" else 4
    count, start = source.cols // turns, source.first * source.cols
    if count % ROWS:
        raise _refused(source.tensor, f"{count} biases are not whole blocks")
    for which in range(turns):
        field = Field(source.tensor, start + which, turns, item, item, item, 0, turn, item == 2)
        yield _move(field, count, 1, part.at + 4 * ROWS * which, 0, 4 * ROWS * turns)


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
