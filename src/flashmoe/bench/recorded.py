"""Reads the traces that the engine records (docs/traces.md); every record is checked."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

import numpy as np

from flashmoe.errors import FlashMoeError, UsageError
from flashmoe.experts import trace_format as fmt
from flashmoe.files import storage_errors
from flashmoe.ops.base import Floats
from flashmoe.strict_json import parse

_LONGEST_HEADER: Final = 1 << 28
_LONGEST_PASS: Final = 1 << 20  # sequences of one pass


class Rows(NamedTuple):
    """What a router said of tokens: ids [n, K] (NO_EXPERT where a rank was left out), scores
    [n, E]; views of the file."""

    ids: fmt.Ids
    scores: Floats


@dataclass(frozen=True)
class RoutedLayer:
    """One layer of one pass, in the order in which they ran."""

    facts: fmt.PassFacts
    layer: int
    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class Recorded:
    """A recorded run. passes: by number. last: hits and misses when the model was closed, None if
    it never was. cut_bytes: of a record at the end that is not whole, as kill -9 leaves it."""

    path: Path
    header: fmt.TraceHeader
    layers: tuple[RoutedLayer, ...]
    passes: Mapping[int, fmt.PassFacts]
    last: tuple[int, int] | None
    cut_bytes: int


def is_recorded(path: Path) -> bool:
    """Whether the file begins as recorded traces do. Raises StorageError."""
    with storage_errors("cannot read", path), path.open("rb") as file:
        return file.read(len(fmt.MAGIC)) == fmt.MAGIC


def read_recorded(path: Path) -> Recorded:
    """Raises UsageError for a damaged trace, StorageError."""
    if not is_recorded(path):
        raise UsageError("this is no trace that --trace recorded", where=path)
    with storage_errors("cannot read", path), path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    end = data.find(b"\n", len(fmt.MAGIC), _LONGEST_HEADER)
    if end < 0:
        raise UsageError("the header of the trace is not whole", where=path)
    header = _header(data[len(fmt.MAGIC) : end], path)
    return _Reader(path, memoryview(data), header).read(end + 1)


def _header(line: bytes, path: Path) -> fmt.TraceHeader:
    fields = parse(line, path, UsageError)
    try:
        return fmt.header_of(fields)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise UsageError(
            "the header of the trace is damaged", where=path, got=str(error)
        ) from error


@dataclass
class _Reader:
    path: Path
    data: memoryview
    header: fmt.TraceHeader
    passes: dict[int, fmt.PassFacts] = field(default_factory=dict)
    layers: list[RoutedLayer] = field(default_factory=list)
    last: tuple[int, int] | None = None
    _open: tuple[tuple[int, int], list[Rows]] | None = None  # pass and layer, rows so far

    def read(self, at: int) -> Recorded:
        """All records from this byte on."""
        whole = at
        for kind, begin, body in self._records(at):
            try:
                self._take(kind, body)
            except (ValueError, KeyError) as error:
                raise self._damaged(begin, str(error)) from error
            whole = begin + fmt.PREFIX.size + len(body) + fmt.CHECK.size
        self._close_layer()
        cut = len(self.data) - whole
        return Recorded(self.path, self.header, tuple(self.layers), self.passes, self.last, cut)

    def _records(self, at: int) -> Iterator[tuple[bytes, int, memoryview]]:
        """Kind, first byte and body of each record that is whole."""
        while at + fmt.PREFIX.size <= len(self.data):
            kind, size = fmt.PREFIX.unpack_from(self.data, at)
            if size > self._longest(kind):
                raise self._damaged(at, f"{kind!r} of {size} bytes")
            body = at + fmt.PREFIX.size
            if body + size + fmt.CHECK.size > len(self.data):
                return
            (check,) = fmt.CHECK.unpack_from(self.data, body + size)
            if check != zlib.crc32(self.data[at : body + size]):
                raise self._damaged(at, "another checksum")
            yield kind, at, self.data[body : body + size]
            at = body + size + fmt.CHECK.size

    def _longest(self, kind: bytes) -> int:
        row = 2 * self.header.num_experts_per_tok + 4 * self.header.num_experts
        return {
            fmt.PASS: fmt.PASS_HEAD.size + fmt.SPAN.size * _LONGEST_PASS,
            fmt.ROWS: fmt.ROWS_HEAD.size + fmt.MOST_ROWS * row,
            fmt.DONE: fmt.DONE_BODY.size,
        }.get(kind, -1)

    def _take(self, kind: bytes, body: memoryview) -> None:
        if kind == fmt.ROWS:
            self._take_rows(body)
        elif kind == fmt.PASS:
            self._take_pass(body)
        else:
            hits, misses = _unpack(fmt.DONE_BODY, body)
            self.last = hits, misses

    def _take_pass(self, body: memoryview) -> None:
        number, slots, hits, misses = _unpack(fmt.PASS_HEAD, body[: fmt.PASS_HEAD.size])
        rest = body[fmt.PASS_HEAD.size :]
        if number in self.passes or not rest or len(rest) % fmt.SPAN.size:
            raise ValueError(f"pass {number}")
        spans = tuple(fmt.SPAN.iter_unpack(rest))
        self.passes[number] = fmt.PassFacts(number, slots, hits, misses, spans)

    def _take_rows(self, body: memoryview) -> None:
        head = _unpack(fmt.ROWS_HEAD, body[: fmt.ROWS_HEAD.size])
        number, layer, tokens, width, _ = head
        rows = self._rows(body[fmt.ROWS_HEAD.size :], tokens, width)
        if number not in self.passes or layer not in self.header.layers:
            raise ValueError(f"layer {layer} of pass {number}")
        if self._open is None or self._open[0] != (number, layer):
            self._close_layer()
            self._open = (number, layer), []
        self._open[1].append(rows)

    def _rows(self, body: memoryview, tokens: int, width: int) -> Rows:
        experts, split = self.header.num_experts, 2 * tokens * width
        if not (tokens and width) or len(body) != split + 4 * tokens * experts:
            raise ValueError(f"{tokens} tokens of {width} experts in {len(body)} bytes")
        ids = np.frombuffer(body[:split], "<u2").reshape(tokens, width)
        scores = np.frombuffer(body[split:], "<f4").reshape(tokens, experts)
        if not ((ids < experts) | (ids == fmt.NO_EXPERT)).all() or (ids[:, 0] >= experts).any():
            raise ValueError("expert id out of range")
        if not (np.isfinite(scores).all() and (scores >= 0).all()):
            raise ValueError("a score that is negative or not finite")
        return Rows(ids, scores)

    def _close_layer(self) -> None:
        if self._open is None:
            return
        (number, layer), rows = self._open
        facts = self.passes[number]
        if sum(len(part.ids) for part in rows) == sum(tokens for _, tokens in facts.spans):
            self.layers.append(RoutedLayer(facts, layer, tuple(rows)))
        self._open = None

    def _damaged(self, at: int, got: str) -> FlashMoeError:
        read = f"{len(self.passes)} passes before it are whole"
        return UsageError(f"byte {at} is no part of a trace ({read})", where=self.path, got=got)


def _unpack(shape: Struct, body: memoryview) -> tuple[int, ...]:
    if len(body) != shape.size:
        raise ValueError(f"{len(body)} bytes instead of {shape.size}")
    values: tuple[int, ...] = shape.unpack(body)
    return values
