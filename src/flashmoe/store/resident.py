"""The resident part of a pack, read past the page cache by several threads, and checked.

Blocks are checked in file order while later ones are read. Memory that was not resident before
becomes so in the threads that read into it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np

from flashmoe import _native
from flashmoe.errors import ChecksumError, StorageError
from flashmoe.files import storage_errors
from flashmoe.quant.layout import Bytes
from flashmoe.store import format as fmt

BLOCK_BYTES: Final = 4 << 20
READS_IN_FLIGHT: Final = 4
_AHEAD: Final = 2 * READS_IN_FLIGHT  # blocks being read or queued while one is checked
_POLL_S: Final = 0.1  # how long Ctrl-C may go unnoticed

# Statuses of a read, as in native/stream/reader.h; a positive one is an errno.
_GOOD, _SHORT = 0, -1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the file: bytes [begin, end)."""

    name: str
    begin: int
    end: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Tensors one after the other in the file, all kept or all not. It takes whole pages."""

    places: tuple[_Place, ...]
    kept: bool

    @property
    def begin(self) -> int:
        return self.places[0].begin // fmt.PAGE * fmt.PAGE

    @property
    def end(self) -> int:
        return self.places[-1].end

    @property
    def room(self) -> int:
        return fmt.align(self.end, fmt.PAGE) - self.begin


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes [begin, end) of the file; data: uint8 [whole pages], where they are read to."""

    begin: int
    end: int
    data: Bytes


def resident_room(manifest: fmt.Manifest, skip: Collection[str] = ()) -> int:
    """Bytes of memory for the resident tensors but those of `skip`, in whole pages."""
    return sum(run.room for run in _runs(manifest, skip) if run.kept)


def read_resident(
    path: Path, manifest: fmt.Manifest, buffer: Bytes, skip: Collection[str] = ()
) -> dict[str, Bytes]:
    """Reads resident.safetensors and compares every checksum -> bytes of tensors by name.

    Args:
        buffer: uint8 [resident_room(manifest, skip)] from a page boundary; the result is views.
        skip: tensors that are read and checked, but not kept.

    Raises ChecksumError for a damaged tensor, StorageError if reading failed.
    """
    assert buffer.nbytes == resident_room(manifest, skip)
    assert not buffer.nbytes or buffer.ctypes.data % fmt.PAGE == 0
    runs = _runs(manifest, skip)
    blocks = _blocks(runs, buffer)
    with _reading(path) as (reader, handle):
        _check_in_order(path, runs, _landed(path, reader, handle, blocks))
    return _kept(runs, buffer)


def page_aligned(nbytes: int) -> Bytes:
    """Uninitialised uint8 [nbytes] that begins with a page."""
    raw = np.empty(nbytes + fmt.PAGE, np.uint8)
    start = -raw.ctypes.data % fmt.PAGE
    return raw[start : start + nbytes]


def check_crc(got: int, expected: int, where: object) -> None:
    """Raises ChecksumError if a CRC-32C is not the one that was written."""
    if got != expected:
        raise ChecksumError(
            "checksum does not match", where=where, expected=f"{expected:08x}", got=f"{got:08x}"
        )


def _runs(manifest: fmt.Manifest, skip: Collection[str]) -> list[_Run]:
    start, offsets = len(manifest.resident_header()), manifest.tensor_offsets()
    places = [
        _Place(name, begin := start + offsets[name], begin + tensor.stored_bytes, tensor.crc32c)
        for name, tensor in manifest.tensors.items()
    ]
    grouped = groupby(places, lambda place: place.name not in skip)
    return [_Run(tuple(group), kept) for kept, group in grouped]


def _blocks(runs: Sequence[_Run], buffer: Bytes) -> list[_Block]:
    """What is read, in file order. What is not kept goes through a few blocks of spare memory."""
    spare = page_aligned(_AHEAD * BLOCK_BYTES) if any(not run.kept for run in runs) else buffer
    blocks: list[_Block] = []
    used = 0
    for run in runs:
        for start in range(0, run.room, BLOCK_BYTES):
            size, begin = min(BLOCK_BYTES, run.room - start), run.begin + start
            # A block's spare memory is read into again only after it has been checked.
            at = used + start if run.kept else len(blocks) % _AHEAD * BLOCK_BYTES
            data = (buffer if run.kept else spare)[at : at + size]
            blocks.append(_Block(begin, min(begin + size, run.end), data))
        used += run.room if run.kept else 0
    return blocks


def _kept(runs: Sequence[_Run], buffer: Bytes) -> dict[str, Bytes]:
    tensors: dict[str, Bytes] = {}
    used = 0
    for run in runs:
        if run.kept:
            for place in run.places:
                at = used - run.begin
                tensors[place.name] = buffer[at + place.begin : at + place.end]
            used += run.room
    return tensors


@contextmanager
def _reading(path: Path) -> Iterator[tuple[_native.Reader, int]]:
    """A reader and its handle of the file; at the end it writes into no memory any more."""
    reader = _native.Reader(READS_IN_FLIGHT)
    try:
        with storage_errors("cannot open", path):
            handle = reader.open(str(path))
        yield reader, handle
    finally:
        reader.cancel()


def _landed(
    path: Path, reader: _native.Reader, handle: int, blocks: Sequence[_Block]
) -> Iterator[_Block]:
    """The blocks in order, each when it is read; the next ones are read while it is used."""
    results: dict[int, tuple[int, int]] = {}
    queued = 0
    for number, block in enumerate(blocks):
        until = min(number + _AHEAD, len(blocks))
        reader.submit_many([_request(i, handle, blocks[i]) for i in range(queued, until)])
        queued = until
        while number not in results:
            for tag, status, detail in reader.wait(_POLL_S):
                results[tag] = status, detail
        _expect_whole(path, block, *results.pop(number))
        yield block


def _request(tag: int, handle: int, block: _Block) -> tuple[int, int, int, int, int, None]:
    return tag, handle, block.begin, block.data.nbytes, block.data.ctypes.data, None


def _expect_whole(path: Path, block: _Block, status: int, detail: int) -> None:
    """detail: of a short read, the bytes got: the file may end inside the last page."""
    nbytes = block.end - block.begin
    if status > 0:
        raise StorageError("cannot read", where=path, got=os.strerror(status))
    if status == _SHORT and detail < nbytes:
        expected = f"{nbytes} bytes at {block.begin}"
        raise StorageError("file ends too early", where=path, expected=expected, got=detail)
    assert status in (_GOOD, _SHORT)


def _check_in_order(path: Path, runs: Sequence[_Run], blocks: Iterator[_Block]) -> None:
    for run in runs:
        block = next(blocks)
        for place in run.places:
            crc, at = 0, place.begin
            while at < place.end:
                if at == block.end:
                    block = next(blocks)
                end = min(place.end, block.end)
                crc = _native.crc32c(block.data[at - block.begin : end - block.begin], crc)
                at = end
            check_crc(crc, place.crc32c, f"{path}: {place.name}")
