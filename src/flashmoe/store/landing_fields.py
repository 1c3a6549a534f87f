"""Where the numbers of quantised rows lie in a checkpoint, and where in a group of a record. Pure.

Codes, scales and biases or zeros of MLX and compressed-tensors; those and the tensor's scale of
NVFP4. GPTQ and AWQ hold matrices transposed: no run of their bytes is a run of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flashmoe.checkpoint.safetensors import ITEM_BYTES, Tensor
from flashmoe.quant import affine, nvfp4
from flashmoe.quant.layout import ROWS
from flashmoe.store.landing import Finite, Turn
from flashmoe.store.quantised import GroupedRows, MlxPacking, Nvfp4Rows, PackedPacking

_FINITE: dict[str, Finite] = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_BIAS: dict[int, Turn] = {4: "bias4", 8: "bias8"}
_BIASED_TYPES = ("BF16", "F16")


class NotInPlaceError(Exception):
    """A source whose bytes cannot become those of its exact format; why."""


@dataclass(frozen=True)
class Field:
    """One kind of a matrix's numbers: where a tensor has it, and where a group of a block has it.

    first, step: rows of the tensor as a matrix of row_bytes per row, each `groups` runs of `run`
    bytes. unit: bytes that alternate between rows, where the format does that. at: within a group
    of the stored form, of which each run fills `times`.
    """

    tensor: Tensor
    first: int
    step: int
    row_bytes: int
    run: int
    unit: int
    at: int
    groups: int
    turn: Turn = "copy"
    finite: Finite = "any"
    times: int = 1


def grouped_fields(source: GroupedRows) -> Sequence[Field]:
    """MLX, and compressed-tensors where zeros are not packed down the columns."""
    packing = source.packing
    if isinstance(packing, MlxPacking):
        return list(_mlx(source, packing))
    if isinstance(packing, PackedPacking):
        return list(_packed(source, packing))
    raise NotInPlaceError("its matrices are stored transposed")


def _mlx(source: GroupedRows, packing: MlxPacking) -> Iterator[Field]:
    first, second = _places(source)
    yield _codes(source)
    yield _scales(source, packing.scales, first)
    yield _scales(source, packing.biases, second)


def _packed(source: GroupedRows, packing: PackedPacking) -> Iterator[Field]:
    first, second = _places(source)
    if packing.index is not None:
        raise NotInPlaceError("an order of columns is given")
    yield _codes(source, "flip" if packing.weight.dtype == "I8" else "copy")
    yield _scales(source, packing.scales, first)
    if packing.zeros is None:
        if packing.scales.dtype not in _BIASED_TYPES or packing.bits not in _BIAS:
            raise NotInPlaceError(f"{packing.scales.dtype} scales without zeros must be encoded")
        yield _scales(source, packing.scales, second, _BIAS[packing.bits])
        return
    if packing.zeros.dtype != "I8":
        raise NotInPlaceError("its zeros are packed down the columns")
    yield _field(source, packing.zeros, 1, 1, second, "flip")


def _places(source: GroupedRows) -> tuple[int, int]:
    """Where scales and biases or zeros lie in a group of the exact format."""
    kept = source.kept
    assert kept is not None, "no exact format"
    codes, size = kept.group * kept.bits // 8, affine.SCALE_BYTES[kept.scale]
    rows = ROWS if kept.format.name == "q4" else 1
    return rows * codes, rows * (codes + size)


def _codes(source: GroupedRows, turn: Turn = "copy") -> Field:
    kept = source.kept
    assert kept is not None, "no exact format"
    run, groups = kept.group * kept.bits // 8, source.cols // kept.group
    dealt: Turn = "deal" if kept.format.name == "q4" else turn
    return Field(
        source.tensor, source.first, source.step, groups * run, run, 4, 0, groups, turn=dealt
    )


def _scales(source: GroupedRows, tensor: Tensor, at: int, turn: Turn = "copy") -> Field:
    assert source.kept is not None, "no exact format"
    size = ITEM_BYTES[tensor.dtype]
    if size != affine.SCALE_BYTES[source.kept.scale]:
        raise NotInPlaceError(f"{tensor.dtype} scales must be widened")
    return _field(source, tensor, size, size, at, turn, _FINITE[tensor.dtype])


def _field(
    source: GroupedRows,
    tensor: Tensor,
    run: int,
    unit: int,
    at: int,
    turn: Turn,
    finite: Finite = "any",
) -> Field:
    """One item per group of the source, which may be several of the stored form."""
    assert source.kept is not None, "no exact format"
    groups = tensor.shape[-1]
    times = source.cols // source.kept.group // groups
    row_bytes = groups * run
    return Field(
        tensor, source.first, source.step, row_bytes, run, unit, at, groups, turn, finite, times
    )


def nvfp4_fields(source: Nvfp4Rows) -> Sequence[Field]:
    """Codes, scales and the tensor's scale, which every run has."""
    if source.whole is None:
        raise NotInPlaceError("the scale of its tensors, 1, is not stored")
    exact = source.exact
    assert exact is not None, "no exact format"
    cols = exact.step
    groups, scales = source.cols // cols, cols // nvfp4.GROUP
    place = (source.first, source.step)
    return [
        Field(source.tensor, *place, source.cols // 2, cols // 2, 4, 4 + scales, groups),
        Field(source.scales, *place, groups * scales, scales, 1, 4, groups, "copy", "e4m3"),
        Field(source.whole, 0, 0, 4, 4, 4, 0, 1, "copy", "divisor", groups),
    ]
