"""Strict reader of safetensors headers. Tensor data is read by explicit range, never mapped.

A file is: u64 little-endian header length n, n bytes of JSON, data. Refused: a header longer than
MAX_HEADER or than the file, unknown types, shapes that contradict their ranges, ranges that
overlap, leave holes or do not end where the file ends.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import CheckpointError
from flashmoe.files import read_exactly, storage_errors
from flashmoe.strict_json import Fields, parse

MAX_HEADER = 32 << 20
MAX_DIMS = 8
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
WEIGHT_TYPES = ("BF16", "F16", "F32")
# Of tables of whole numbers, and of scales that are powers of two.
INTEGER_TYPES = {"I32": "<i4", "I64": "<i8"}
E8M0 = "F8_E8M0"


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `nbytes` bytes at `offset` of the file `path`, row-major."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """One open safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors("cannot open", path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """The bytes at an absolute offset -> uint8 [nbytes]."""
        data = np.empty(nbytes, np.uint8)
        read_exactly(self._fd, data.data, offset, self.path)
        return data

    def close(self) -> None:
        """Closes the descriptor; the object must not be used afterwards."""
        os.close(self._fd)

    def _read_header(self) -> dict[str, Tensor]:
        start = self.read(0, min(8, self.size)).tobytes()
        length = header_length(start, self.size, self.path)
        header = self.read(8, length).tobytes()
        return parse_header(header, self.size - 8 - length, self.path)


def header_length(start: bytes, size: int, path: Path) -> int:
    """Bytes of the JSON header of a file of `size` bytes that begins with `start`."""
    if size < 8:
        raise CheckpointError("file is truncated", where=path, got=f"{size} bytes")
    (length,) = struct.unpack_from("<Q", start)
    limit = min(MAX_HEADER, size - 8)
    if length > limit:
        raise CheckpointError(
            "bad header length", where=path, expected=f"at most {limit}", got=length
        )
    return int(length)


def parse_header(header: bytes, data_bytes: int, path: Path) -> dict[str, Tensor]:
    """The JSON header of a file with `data_bytes` bytes of data -> its tensors by name."""
    raw = parse(header, path, CheckpointError)
    raw.pop("__metadata__", None)
    members = Fields(raw, str(path), CheckpointError).members()
    start = 8 + len(header)
    tensors = {name: _tensor(name, fields, start, path) for name, fields in members.items()}
    _check_ranges(list(tensors.values()), start, start + data_bytes, path)
    return tensors


def _tensor(name: str, fields: Fields, start: int, path: Path) -> Tensor:
    dtype = fields.choice("dtype", *ITEM_BYTES)
    shape = fields.integers("shape")
    offsets = fields.integers("data_offsets")
    fields.end()
    if len(shape) > MAX_DIMS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError("bad shape or range", where=fields.where, got=offsets)
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            "range contradicts the shape",
            where=fields.where,
            expected=f"{nbytes} bytes for {dtype} {list(shape)}",
            got=offsets[1] - offsets[0],
        )
    return Tensor(name, path, dtype, shape, start + offsets[0], nbytes)


def _check_ranges(tensors: list[Tensor], start: int, end: int, path: Path) -> None:
    position = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            raise CheckpointError(
                "ranges overlap" if tensor.offset < position else "ranges leave a hole",
                where=f"{path}: {tensor.name}",
                expected=position - start,
                got=tensor.offset - start,
            )
        position += tensor.nbytes
    if position != end:
        raise CheckpointError(
            "file is truncated" if position > end else "data after the last tensor",
            where=path,
            expected=f"{position} bytes",
            got=end,
        )


def to_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Bytes [..., n * itemsize] of a WEIGHT_TYPES dtype, of E8M0 (255 is NaN) or of INTEGER_TYPES
    -> the same numbers, float32 [..., n]."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == E8M0:
        powers = np.ldexp(1.0, np.arange(256) - 127)
        powers[255] = np.nan
        return powers.astype(np.float32)[raw]
    if dtype in INTEGER_TYPES:
        return raw.view(INTEGER_TYPES[dtype]).astype(np.float32)
    return raw.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)
