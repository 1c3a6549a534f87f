"""Rows of quantised matrices: MLX, GPTQ, AWQ, compressed-tensors and NVFP4 checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint import quantization as schemes
from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.grouped import (
    Groups,
    Kept,
    awq_codes,
    columns_to_codes,
    kept_as,
    words_to_codes,
)
from flashmoe.checkpoint.names import Names
from flashmoe.checkpoint.quantization import Grouping, Quantization
from flashmoe.checkpoint.safetensors import WEIGHT_TYPES, to_float32
from flashmoe.checkpoint.safetensors import Tensor as SourceTensor
from flashmoe.errors import CheckpointError, ConfigError
from flashmoe.quant import Format, affine, nvfp4
from flashmoe.quant.fp8 import VALUES
from flashmoe.quant.layout import Bytes, Floats
from flashmoe.store.row_sources import Mxfp4Rows, RowSource, check_shape, read_rows_of


class Packing(Protocol):
    """How one method lays codes, scales and zeros out."""

    @property
    def at_once(self) -> bool:
        """Whether a few rows cost as much as all."""

    def read(self, checkpoint: Source, rows: range) -> Groups:
        """Rows of the matrix, seen as one of 2 dimensions."""


@dataclass(frozen=True)
class GroupedRows:
    """Rows first, first + step, ... of a quantised matrix, as float32 or as they are stored."""

    tensor: SourceTensor
    packing: Packing
    first: int
    rows: int
    cols: int
    kept: Kept | None
    step: int = 1
    dtype = "F32"

    @property
    def at_once(self) -> bool:
        return self.packing.at_once

    @property
    def exact(self) -> Format | None:
        """The format that holds the rows exactly."""
        return None if self.kept is None else self.kept.format

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        weights = self.packing.read(checkpoint, self._span(start, stop)).weights()
        return weights.view(np.uint8).reshape(stop - start, -1)

    def read_kept(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        """Rows [start, stop) in the exact format's order of columns -> uint8 [rows, row_bytes]."""
        assert self.kept is not None
        groups = self.packing.read(checkpoint, self._span(start, stop))
        if groups.index is not None:
            raise CheckpointError(
                "columns are grouped in another order than the config says",
                where=f"{self.tensor.path}: {self.tensor.name}",
                hint="Choose --experts q8 and --dense q8",
            )
        return self.kept.runs(groups)

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, column {col}"

    def _span(self, start: int, stop: int) -> range:
        return range(self.first + self.step * start, self.first + self.step * stop, self.step)


@dataclass(frozen=True)
class MlxPacking:
    """Codes, scales and biases row by row."""

    weight: SourceTensor
    scales: SourceTensor
    biases: SourceTensor
    cols: int
    bits: int
    at_once = False

    def read(self, checkpoint: Source, rows: range) -> Groups:
        stream = read_rows_of(checkpoint, self.weight, self.cols * self.bits // 8, rows)
        scale = _float_rows(checkpoint, self.scales, rows)
        bias = _float_rows(checkpoint, self.biases, rows)
        return Groups(affine.unpack_codes(np.ascontiguousarray(stream), self.bits), scale, bias)


@dataclass(frozen=True)
class PackedPacking:
    """compressed-tensors: codes packed along the rows, zeros (if any) down the columns."""

    weight: SourceTensor
    scales: SourceTensor
    zeros: SourceTensor | None
    index: SourceTensor | None
    cols: int
    bits: int
    at_once = False

    def read(self, checkpoint: Source, rows: range) -> Groups:
        row_bytes = self.weight.nbytes // self.weight.shape[0]
        data = np.ascontiguousarray(read_rows_of(checkpoint, self.weight, row_bytes, rows))
        plain = self.weight.dtype == "I8"
        code = data ^ np.uint8(128) if plain else words_to_codes(data, self.bits, self.cols)
        scale = _float_rows(checkpoint, self.scales, rows)
        index = _order(checkpoint, self.index, self.cols, scale.shape[1])
        return Groups(code, scale, zero=self._zeros(checkpoint, rows, scale.shape), index=index)

    def _zeros(self, checkpoint: Source, rows: range, shape: tuple[int, ...]) -> Bytes:
        if self.zeros is None:
            return np.full(shape, 1 << (self.bits - 1), np.uint8)
        if self.zeros.dtype == "I8":
            return read_rows_of(checkpoint, self.zeros, shape[1], rows) ^ np.uint8(128)
        words = _all(checkpoint, self.zeros).view("<u4").reshape(self.zeros.shape)
        whole = columns_to_codes(words, self.bits, self.weight.shape[0])
        return np.ascontiguousarray(whole.T[rows.start : rows.stop : rows.step])


@dataclass(frozen=True)
class ColumnPacking:
    """GPTQ and AWQ: the matrix transposed, so that all of it is read."""

    weight: SourceTensor
    scales: SourceTensor
    zeros: SourceTensor
    index: SourceTensor | None
    cols: int
    quantization: Quantization
    at_once = True

    def read(self, checkpoint: Source, rows: range) -> Groups:
        code = self._codes(checkpoint, self.weight, self.cols)
        scale = to_float32(_all(checkpoint, self.scales)[None], self.scales.dtype)
        scale = np.ascontiguousarray(scale.reshape(self.scales.shape).T)
        zero = self._zeros(checkpoint, len(code))
        chosen = slice(rows.start, rows.stop, rows.step)
        index = _order(checkpoint, self.index, self.cols, scale.shape[1])
        return Groups(code[chosen], scale[chosen], zero=zero[chosen], index=index)

    def _codes(self, checkpoint: Source, tensor: SourceTensor, count: int) -> Bytes:
        words = _all(checkpoint, tensor).view("<u4").reshape(tensor.shape)
        if self.quantization.method == "awq":
            return awq_codes(words)
        return columns_to_codes(words, self.quantization.default.bits, count)

    def _zeros(self, checkpoint: Source, rows: int) -> Bytes:
        """uint8 [rows, groups]."""
        bits, words = self.quantization.default.bits, _all(checkpoint, self.zeros)
        if self.quantization.method == "awq":
            return awq_codes(words.view("<u4").reshape(self.zeros.shape))
        across = words.reshape(self.zeros.shape[0], -1)
        stored = words_to_codes(across, bits, rows).astype(np.int32)
        zero = (stored + self.quantization.zero_offset) & (2**bits - 1)
        if self.quantization.symmetric and np.any(zero != 1 << (bits - 1)):
            raise CheckpointError(
                "zeros of a symmetric checkpoint differ",
                where=f"{self.zeros.path}: {self.zeros.name}",
                expected=1 << (bits - 1),
                got=int(zero[zero != 1 << (bits - 1)][0]),
            )
        return np.ascontiguousarray(zero.astype(np.uint8).T)


@dataclass(frozen=True)
class Nvfp4Rows:
    """Rows first, first + step, ... of NVFP4: codes, scales and, if any, the tensor's scale."""

    tensor: SourceTensor
    scales: SourceTensor
    whole: SourceTensor | None
    divides: bool
    first: int
    rows: int
    cols: int
    step: int = 1
    at_once = False
    dtype = "F32"

    @property
    def exact(self) -> Format | None:
        """The format that holds the rows exactly."""
        run = next((run for run in reversed(nvfp4.RUNS) if self.cols % run == 0), None)
        return None if run is None else Format(nvfp4.name(self.divides, run))

    def read(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        codes, scales, whole = self._parts(checkpoint, start, stop)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = VALUES[scales] / whole if self.divides else VALUES[scales] * whole
        values = nvfp4.CODES[nvfp4.unpack_nibbles(codes)].reshape(*scale.shape, nvfp4.GROUP)
        weights = (values * scale[..., None]).astype(np.float32)
        return np.ascontiguousarray(weights).view(np.uint8).reshape(stop - start, -1)

    def read_kept(self, checkpoint: Source, start: int, stop: int) -> Bytes:
        """Rows [start, stop) as runs of the exact format -> uint8 [rows, row_bytes]."""
        codes, scales, whole = self._parts(checkpoint, start, stop)
        run = next(run for run in reversed(nvfp4.RUNS) if self.cols % run == 0)
        shape = (len(codes), self.cols // run)
        head = np.broadcast_to(whole.astype("<f4").view(np.uint8), (*shape, 4))
        parts = [head, scales.reshape(*shape, -1), codes.reshape(*shape, -1)]
        return np.concatenate(parts, axis=2).reshape(len(codes), -1)

    def place(self, row: int, col: int) -> str:
        return f"row {self.first + self.step * row}, column {col}"

    def _parts(self, checkpoint: Source, start: int, stop: int) -> tuple[Bytes, Bytes, Floats]:
        span = range(self.first + self.step * start, self.first + self.step * stop, self.step)
        codes = read_rows_of(checkpoint, self.tensor, self.cols // 2, span)
        scales = read_rows_of(checkpoint, self.scales, self.cols // nvfp4.GROUP, span)
        whole = np.ones(1, np.float32)
        if self.whole is not None:
            whole = _all(checkpoint, self.whole).view("<f4").astype(np.float32)
        if not np.isfinite(whole).all() or not whole.all() or np.any((scales & 127) == 127):
            where = f"{self.tensor.path}: {self.tensor.name}"
            raise CheckpointError("a scale is not finite or zero", where=where)
        return np.ascontiguousarray(codes), np.ascontiguousarray(scales), whole


def find_quantised(
    names: Names, name: str, shape: tuple[int, ...], first: int, rows: int, step: int
) -> RowSource | None:
    """Rows of the matrix NAME.weight of this shape if it is quantised, else None.

    Raises CheckpointError for a part that is missing or of another type, ConfigError for shapes.
    """
    if names.quantization is None:
        return None
    finder = _FINDERS[names.quantization.method]
    return finder(names, name.removesuffix(".weight"), shape, (first, rows, step))


_Span = tuple[int, int, int]


def _mlx(names: Names, stem: str, shape: tuple[int, ...], span: _Span) -> RowSource | None:
    scales = names.find(f"{stem}.scales")
    if scales is None:
        return None
    weight, cols, first = names.take(f"{stem}.weight"), shape[-1], span[0]
    grouping = _quantization(names).of(weight.name.removesuffix(".weight"))
    _check_groups(weight, cols, grouping)
    check_shape(weight, (*shape[:-1], cols * grouping.bits // 32), ("U32",))
    types = WEIGHT_TYPES if grouping.mode == "affine" else ("U8",)
    check_shape(scales, (*shape[:-1], cols // grouping.group), types)
    if grouping.mode == "mxfp4":
        return Mxfp4Rows(weight, scales, first, span[1], cols, span[2])
    if grouping.mode == "nvfp4":
        return Nvfp4Rows(weight, scales, None, False, first, span[1], cols, span[2])
    biases = names.take(f"{stem}.biases")
    check_shape(biases, (*shape[:-1], cols // grouping.group), (scales.dtype,))
    kept = kept_as(True, grouping.bits, affine.SCALES[scales.dtype], grouping.group)
    packing = MlxPacking(weight, scales, biases, cols, grouping.bits)
    return GroupedRows(weight, packing, first, span[1], cols, kept, span[2])


def _columns(names: Names, stem: str, shape: tuple[int, ...], span: _Span) -> RowSource | None:
    """GPTQ and AWQ."""
    weight = names.find(f"{stem}.qweight")
    if weight is None:
        return None
    scheme, (rows, cols) = _quantization(names), shape
    grouping, awq = scheme.default, scheme.method == "awq"
    scales, zeros = names.take(f"{stem}.scales"), names.take(f"{stem}.qzeros")
    index = names.find(f"{stem}.g_idx")
    size = _check_groups(weight, cols, grouping)
    packed = (cols, rows * 4 // 32) if awq else (cols * grouping.bits // 32, rows)
    check_shape(weight, packed, ("I32",))
    check_shape(scales, (cols // size, rows))
    check_shape(zeros, (cols // size, -(-rows * grouping.bits // 32)), ("I32",))
    if index is not None:
        check_shape(index, (cols,), ("I32",))
    kept = None
    if not scheme.permuted:
        kept = kept_as(scheme.symmetric, grouping.bits, affine.SCALES[scales.dtype], size)
    packing = ColumnPacking(weight, scales, zeros, index, cols, scheme)
    return GroupedRows(weight, packing, span[0], span[1], cols, kept, span[2])


def _compressed(names: Names, stem: str, shape: tuple[int, ...], span: _Span) -> RowSource | None:
    scheme = _quantization(names)
    scales = names.find(f"{stem}.weight_scale")
    if scales is None:
        return None
    if scheme.packing == schemes.NVFP4:
        return _nvfp4(names, stem, shape, span)
    plain = scheme.packing == schemes.PLAIN
    weight = names.take(f"{stem}.weight" if plain else f"{stem}.weight_packed")
    names.find(f"{stem}.weight_shape")
    (rows, cols), bits = shape, scheme.default.bits
    size = _check_groups(weight, cols, scheme.default)
    check_shape(scales, (rows, cols // size))
    check_shape(
        weight, shape if plain else (rows, -(-cols * bits // 32)), ("I8" if plain else "I32",)
    )
    zeros = None if scheme.symmetric else names.take(f"{stem}.weight_zero_point")
    if zeros is not None:
        height = rows if plain else -(-rows * bits // 32)
        check_shape(zeros, (height, cols // size), ("I8" if plain else "I32",))
    index = names.find(f"{stem}.weight_g_idx")
    kept = None
    if not scheme.permuted:
        kept = kept_as(scheme.symmetric, bits, affine.SCALES[scales.dtype], size)
    packing = PackedPacking(weight, scales, zeros, index, cols, bits)
    return GroupedRows(weight, packing, span[0], span[1], cols, kept, span[2])


def _nvfp4(names: Names, stem: str, shape: tuple[int, ...], span: _Span) -> RowSource | None:
    divides = _quantization(names).method == "compressed-tensors"
    scales = names.find(f"{stem}.weight_scale")
    if scales is None:
        return None
    weight = names.take(f"{stem}.weight_packed" if divides else f"{stem}.weight")
    whole = names.take(f"{stem}.weight_global_scale" if divides else f"{stem}.weight_scale_2")
    names.find(f"{stem}.input_global_scale" if divides else f"{stem}.input_scale")
    rows, cols = shape
    _check_groups(weight, cols, Grouping(4, nvfp4.GROUP))
    check_shape(weight, (rows, cols // 2), ("U8",))
    check_shape(scales, (rows, cols // nvfp4.GROUP), ("F8_E4M3",))
    check_shape(whole, (), ("F32",))
    return Nvfp4Rows(weight, scales, whole, divides, span[0], span[1], cols, span[2])


_FINDERS = {
    "mlx": _mlx,
    "gptq": _columns,
    "awq": _columns,
    "compressed-tensors": _compressed,
    "modelopt": _nvfp4,
}


def _quantization(names: Names) -> Quantization:
    assert names.quantization is not None
    return names.quantization


def _check_groups(weight: SourceTensor, cols: int, grouping: Grouping) -> int:
    """Columns per scale, which must divide the columns; so must the words of the codes."""
    size = grouping.group or cols
    if cols % size or cols * grouping.bits % 32:
        raise ConfigError(
            f"groups of {size} columns of {grouping.bits} bits do not fit",
            where=f"{weight.path}: {weight.name}",
            expected=f"a multiple of {math.lcm(size, 32)} columns",
            got=cols,
        )
    return size


def _all(checkpoint: Source, tensor: SourceTensor) -> Bytes:
    return checkpoint.read(tensor, 0, tensor.nbytes)


def _float_rows(checkpoint: Source, tensor: SourceTensor, rows: range) -> Floats:
    raw = read_rows_of(checkpoint, tensor, tensor.nbytes // math.prod(tensor.shape[:-1]), rows)
    return to_float32(np.ascontiguousarray(raw), tensor.dtype)


def _order(
    checkpoint: Source, tensor: SourceTensor | None, cols: int, groups: int
) -> NDArray[np.int32] | None:
    """The group of each column; None if they are in order."""
    if tensor is None:
        return None
    index = _all(checkpoint, tensor).view("<i4").astype(np.int32)
    if np.array_equal(index, np.arange(cols) // (cols // groups)):
        return None
    if index.min() < 0 or index.max() >= groups:
        where = f"{tensor.path}: {tensor.name}"
        raise CheckpointError("bad group of a column", where=where, expected=f"0 to {groups - 1}")
    return index
