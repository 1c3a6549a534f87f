"""Strict reader of GGUF headers (version 2 and 3, little-endian). Tensor data is read by range.

A file is: "GGUF", u32 version, u64 tensors, u64 keys; the keys, each a name, a type and a value;
the tensors, each a name, its dimensions (the innermost first), a type and an offset; then, at the
next multiple of `general.alignment`, the data. All lengths are checked against what is left of the
file before anything is allocated.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError
from flashmoe.files import read_exactly, storage_errors

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
ALIGNMENT: Final = "general.alignment"
MAX_HEADER: Final = 128 << 20
MAX_KEYS: Final = 1 << 12
MAX_TENSORS: Final = 1 << 16
MAX_NAME: Final = 1 << 10
MAX_STRING: Final = 8 << 20
MAX_STRINGS: Final = 1 << 21  # of one array: tokens or merges
MAX_DIMS: Final = 4
_BLOCK: Final = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Type:
    """A tensor type: `nbytes` bytes hold `cols` numbers."""

    name: str
    cols: int
    nbytes: int


# By number in the file; the names are those of ggml, of which Tensor.dtype has one.
TYPES: Final = {
    0: Type("F32", 1, 4),
    1: Type("F16", 1, 2),
    2: Type("Q4_0", 32, 18),
    3: Type("Q4_1", 32, 20),
    6: Type("Q5_0", 32, 22),
    7: Type("Q5_1", 32, 24),
    8: Type("Q8_0", 32, 34),
    10: Type("Q2_K", 256, 84),
    11: Type("Q3_K", 256, 110),
    12: Type("Q4_K", 256, 144),
    13: Type("Q5_K", 256, 176),
    14: Type("Q6_K", 256, 210),
    20: Type("IQ4_NL", 32, 18),
    23: Type("IQ4_XS", 256, 136),
    30: Type("BF16", 1, 2),
    39: Type("MXFP4", 32, 17),
}
BY_NAME: Final = {kind.name: kind for kind in TYPES.values()}
_SCALARS: Final = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
    7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class GgufFile:
    """One open GGUF file: `metadata` by key and `tensors` by name, as the file names them.

    Metadata values are bool, int, float, str, lists of str, or NumPy arrays of numbers. Shapes are
    outermost first, as everywhere in flashmoe.

    Raises:
        CheckpointError: not a GGUF file, damaged, or of a type that is not supported.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors("cannot open", path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
            self.metadata, self.tensors = _read_header(_Cursor(self._fd, self.size, path))
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


class _Cursor:
    """Reads a header from its start, a block at a time."""

    def __init__(self, fd: int, size: int, path: Path) -> None:
        self.path, self.size, self.position = path, size, 0
        self._fd, self._block, self._start = fd, b"", 0

    def fail(self, what: str, expected: object, got: object) -> CheckpointError:
        """An error at this place of the file, to be raised."""
        where = f"{self.path}: byte {self.position}"
        return CheckpointError(what, where=where, expected=expected, got=got)

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        self.expect_left(nbytes)
        start = self.position - self._start
        if start + nbytes > len(self._block):
            self._refill(nbytes)
            start = 0
        self.position += nbytes
        return self._block[start : start + nbytes]

    def expect_left(self, nbytes: int) -> None:
        """Raises unless so many bytes may follow."""
        left = min(self.size, MAX_HEADER) - self.position
        if nbytes > left:
            raise self.fail("header is truncated or too long", f"at most {left} bytes", nbytes)

    def _refill(self, nbytes: int) -> None:
        data = bytearray(min(max(nbytes, _BLOCK), self.size - self.position))
        read_exactly(self._fd, memoryview(data), self.position, self.path)
        self._block, self._start = bytes(data), self.position

    def number(self, code: str) -> int:
        """The next integer."""
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))
        return int(value)

    def count(self, what: str, limit: int) -> int:
        """The next u64, refused above the limit."""
        value = self.number("Q")
        if value > limit:
            raise self.fail(f"too many or too long: {what}", f"at most {limit}", value)
        return value

    def text(self, what: str, limit: int) -> str:
        """The next string. Tokens may be any bytes: what is no UTF-8 is replaced."""
        return self.take(self.count(what, limit)).decode("utf-8", errors="replace")


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    magic = cursor.take(len(MAGIC))
    if magic != MAGIC:
        raise cursor.fail("not a GGUF file", MAGIC, magic)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise cursor.fail("GGUF version is not supported", " | ".join(map(str, VERSIONS)), version)
    tensors, keys = cursor.count("tensors", MAX_TENSORS), cursor.count("keys", MAX_KEYS)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name = cursor.text("key", MAX_NAME)
        if name in metadata:
            raise cursor.fail("key appears twice", "once", name)
        metadata[name] = _value(cursor, cursor.number("I"))
    found = [_tensor(cursor) for _ in range(tensors)]
    return metadata, _placed(cursor, found, _alignment(cursor, metadata))


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.text("string", MAX_STRING)
    if kind == _ARRAY:
        return _array(cursor)
    if kind not in _SCALARS:
        raise cursor.fail("unknown type of a value", f"{sorted(_SCALARS)}", kind)
    dtype = np.dtype(_SCALARS[kind])
    return np.frombuffer(cursor.take(dtype.itemsize), dtype)[0].item()


def _array(cursor: _Cursor) -> Any:
    kind = cursor.number("I")
    if kind == _STRING:
        count = cursor.count("strings", MAX_STRINGS)
        cursor.expect_left(8 * count)
        return [cursor.text("string", MAX_STRING) for _ in range(count)]
    if kind not in _SCALARS:
        raise cursor.fail("unknown type of an array", f"{[*sorted(_SCALARS), _STRING]}", kind)
    dtype = np.dtype(_SCALARS[kind])
    return np.frombuffer(cursor.take(dtype.itemsize * cursor.count("items", MAX_HEADER)), dtype)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get(ALIGNMENT, 32)
    if not isinstance(value, int) or not 1 <= value <= 1 << 16 or value & (value - 1):
        raise cursor.fail(ALIGNMENT, "a power of two up to 65536", value)
    return value


def _tensor(cursor: _Cursor) -> Tensor:
    """A tensor whose offset counts from the start of the data."""
    name = cursor.text("name", MAX_NAME)
    dims = cursor.number("I")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.fail(f"dimensions of {name}", f"1 to {MAX_DIMS}", dims)
    shape = tuple(cursor.count("dimension", 1 << 40) for _ in range(dims))[::-1]
    kind = TYPES.get(number := cursor.number("I"))
    if kind is None:
        known = ", ".join(BY_NAME)
        raise cursor.fail(f"type of {name} is not supported", known, f"type {number} of ggml")
    if not math.prod(shape) or shape[-1] % kind.cols:
        raise cursor.fail(f"shape of {name}", f"rows of a multiple of {kind.cols}", list(shape))
    nbytes = math.prod(shape) // kind.cols * kind.nbytes
    return Tensor(name, cursor.path, kind.name, shape, cursor.number("Q"), nbytes)


def _placed(cursor: _Cursor, found: list[Tensor], alignment: int) -> dict[str, Tensor]:
    """The tensors at absolute offsets: inside of the file and apart from each other."""
    start = -(-cursor.position // alignment) * alignment
    position, placed = start, {}
    for tensor in sorted(found, key=lambda t: t.offset):
        offset = start + tensor.offset
        if tensor.offset % alignment or offset < position or offset + tensor.nbytes > cursor.size:
            raise cursor.fail(
                f"{tensor.name} overlaps another tensor, is not aligned or the file is truncated",
                f"{tensor.nbytes} bytes at a multiple of {alignment}, {position} to {cursor.size}",
                offset,
            )
        if tensor.name in placed:
            raise cursor.fail("tensor appears twice", "once", tensor.name)
        position = offset + tensor.nbytes
        placed[tensor.name] = Tensor(
            tensor.name, tensor.path, tensor.dtype, tensor.shape, offset, tensor.nbytes
        )
    return placed
