"""Calibration files: what routed experts saw while a text ran, layer by layer.

A safetensors file. Per layer N: `layers.N.x`, bf16 [T, H], the experts' input; `layers.N.ids`,
int32 [T, K], and `layers.N.weights`, float32 [T, K], the routing. `__metadata__` says what text it
was, and has a sketch of its passages (text/shingles.py), so that evaluations can tell whether they
use the same.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import CheckpointError, UsageError
from flashmoe.files import storage_errors
from flashmoe.quant.layout import Floats, from_bf16, to_bf16
from flashmoe.strict_json import parse, shown

KIND = "flashmoe calibration"
SHINGLES = "; shingles "  # before the sketch in a pack's record
MAX_HEADER = 16 << 20
_DTYPES = {"BF16": "<u2", "I32": "<i4", "F32": "<f4"}
Mapped = np.memmap[Any, np.dtype[Any]]
_FIELDS = {"x": "BF16", "ids": "I32", "weights": "F32"}


@dataclass(frozen=True)
class LayerInputs:
    """x: bf16 bits [T, H]; ids int32 [T, K] and weights float32 [T, K] of the routing."""

    x: NDArray[np.uint16]
    ids: NDArray[np.int32]
    weights: Floats

    def of_expert(self, expert: int) -> tuple[Floats, Floats]:
        """The inputs that an expert got, float32 [n, H], and their routing weights [n]."""
        tokens, ranks = np.nonzero(self.ids == expert)
        return from_bf16(self.x[tokens]), self.weights[tokens, ranks]


class CalibrationWriter:
    """Writes a file of `tokens` tokens, in as many pieces as they come in; `finish` names it.

    Raises StorageError where the file cannot be written.
    """

    def __init__(self, path: Path, layers: list[int], sizes: tuple[int, int, int]) -> None:
        """sizes: tokens, hidden size, experts per token."""
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._rows = dict.fromkeys(layers, 0)
        tokens, hidden, k = sizes
        self._shapes = {"x": (tokens, hidden), "ids": (tokens, k), "weights": (tokens, k)}
        self._data: dict[str, Mapped] = {}

    def open(self, about: Mapping[str, str], done: int = 0) -> None:
        """about: what the text was; part of the file. done: tokens of every layer that an earlier
        run has left on disk, to go on behind them."""
        head = self._head(about)
        text = json.dumps(head, separators=(",", ":")).encode("ascii")
        text = text.ljust(-(-(8 + len(text)) // 4096) * 4096 - 8)
        with storage_errors("cannot write", self._partial):
            if not done:
                self._create(struct.pack("<Q", len(text)) + text, head)
            self._data = _map(self._partial, head, 8 + len(text), "r+")
        self._rows = dict.fromkeys(self._rows, done)

    def sync(self) -> None:
        """What was added so far is on disk when this returns."""
        with storage_errors("cannot write", self._partial):
            for tensor in self._data.values():
                tensor.flush()

    def _head(self, about: Mapping[str, str]) -> dict[str, Any]:
        head: dict[str, Any] = {"__metadata__": {"format": KIND, **about}}
        position = 0
        for layer in self._rows:
            for name, dtype in _FIELDS.items():
                end = position + _nbytes(dtype, self._shapes[name])
                head[f"layers.{layer}.{name}"] = _entry(dtype, self._shapes[name], position, end)
                position = end
        return head

    def _create(self, start: bytes, head: Mapping[str, Any]) -> None:
        size = max(v["data_offsets"][1] for n, v in head.items() if n != "__metadata__")
        with self._partial.open("wb") as file:
            file.write(start)
            file.truncate(len(start) + size)

    def add(self, layer: int, ids: NDArray[np.int32], x: Floats, weights: Floats) -> None:
        """The next tokens of a layer; those beyond the file's are dropped."""
        start = self._rows[layer]
        count = min(len(x), len(self._data[f"layers.{layer}.x"]) - start)
        rows = slice(start, start + count)
        for name, values in (("x", to_bf16(x)), ("ids", ids), ("weights", weights)):
            self._data[f"layers.{layer}.{name}"][rows] = values[:count]
        self._rows[layer] += count

    def finish(self) -> None:
        """Every layer has all its tokens: the file appears under its name."""
        tokens = self._shapes["x"][0]
        assert set(self._rows.values()) == {tokens}, "tokens are missing"
        self.sync()
        self._data.clear()
        with storage_errors("cannot rename", self.path):
            self._partial.replace(self.path)


class Calibration:
    """An open calibration file. Raises UsageError if there is none, CheckpointError if damaged."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            hint = "Make one with `flashmoe calibrate`"
            raise UsageError("no calibration file", where=path, hint=hint)
        self.path = path
        with storage_errors("cannot read", path):
            head, start = _read_head(path)
            self._about = dict(head["__metadata__"])
            self._data = _map(path, head, start, "r")

    def layer(self, number: int, hidden: int, experts: int) -> LayerInputs:
        """What a layer saw. Raises UsageError if the file is of a model of another shape."""
        try:
            x, ids, weights = (self._data[f"layers.{number}.{name}"] for name in _FIELDS)
        except KeyError:
            raise self._other(f"layer {number}", "none") from None
        self._check(number, x, ids, weights)
        if x.shape[1] != hidden or ids.max() >= experts:
            raise self._other(f"{experts} experts of {hidden}", f"{ids.max() + 1} of {x.shape[1]}")
        return LayerInputs(x, ids, weights)

    def _check(
        self, number: int, x: NDArray[np.uint16], ids: NDArray[np.int32], weights: Floats
    ) -> None:
        """The tensors of a layer belong together and hold numbers."""
        exponent = np.uint16(0x7F80)
        fits = x.ndim == ids.ndim == 2 and len(x) == len(ids) and ids.shape == weights.shape
        if not (fits and x.size and ids.size and ids.min() >= 0 and np.isfinite(weights).all()):
            raise CheckpointError("calibration file is damaged", where=f"{self.path}: {number}")
        if ((x & exponent) == exponent).any():
            raise CheckpointError("calibration file is damaged", where=f"{self.path}: {number}.x")

    @property
    def record(self) -> str:
        """For the manifest: what text it was, the file's SHA-256, and the sketch if it has one."""
        digest = hashlib.sha256()
        with storage_errors("cannot read", self.path), self.path.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
        record = f"{shown(str(self._about.get('text', '')))}; sha256 {digest.hexdigest()}"
        return f"{record}{SHINGLES}{found}" if (found := self._about.get("shingles")) else record

    def _other(self, expected: str, got: str) -> UsageError:
        return UsageError(
            "the calibration is of another model", where=self.path, expected=expected, got=got
        )


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _nbytes(dtype: str, shape: tuple[int, int]) -> int:
    rows, cols = shape
    return rows * cols * np.dtype(_DTYPES[dtype]).itemsize


def _read_head(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and where the data starts."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= MAX_HEADER else b""
    head = parse(text, str(path), CheckpointError) if len(text) == length else None
    about = head.get("__metadata__") if isinstance(head, dict) else None
    if not isinstance(head, dict) or not isinstance(about, dict) or about.get("format") != KIND:
        raise CheckpointError("not a calibration file", where=path)
    return head, 8 + length


def _map(path: Path, head: Mapping[str, Any], start: int, mode: Any) -> dict[str, Mapped]:
    """The tensors of a file by name. Raises CheckpointError where header and file disagree."""
    size = path.stat().st_size
    tensors: dict[str, Mapped] = {}
    for name, entry in head.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if dtype != _FIELDS[name.rpartition(".")[2]] or min(shape) < 1:
                raise ValueError("wrong type or shape")
            if end - begin != _nbytes(dtype, shape) or start + end > size or begin < 0:
                raise ValueError("wrong size")
            tensors[name] = np.memmap(path, _DTYPES[dtype], mode, start + begin, shape)
        except (KeyError, TypeError, ValueError, OverflowError) as cause:
            raise CheckpointError(
                "calibration file is damaged", where=f"{path}: {name}", got=str(cause)
            ) from cause
    return tensors
