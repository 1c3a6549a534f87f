"""Checks every byte of a packed model against its manifest and reports all damage there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flashmoe import _native
from flashmoe.errors import PackError, StorageError
from flashmoe.files import opened, read_exactly
from flashmoe.store import format as fmt
from flashmoe.store.packed import check_header, check_size, check_small_file, read_manifest
from flashmoe.store.resident import check_crc

PIECE_BYTES = 8 << 20

Progress = Callable[[int, int], None]
Damage = PackError | StorageError


@dataclass(frozen=True)
class Region:
    """`nbytes` at `offset` of a data file that one CRC-32C covers: a tensor or a record."""

    name: str
    offset: int
    nbytes: int
    crc32c: int


def verify(path: Path, progress: Progress | None = None) -> list[Damage]:
    """Every damage of the packed model at `path`, file by file; empty if it is sound.

    Args:
        progress: called with (bytes checked, bytes in all).

    Raises:
        UsageError, PackError: there is no readable manifest to check against.
    """
    manifest = read_manifest(path)
    total = sum(size for _, size in manifest.data_files().values())
    check = _Check(progress, total)
    for name, file in manifest.files.items():
        check.small_file(path / name, file)
    for name, (header, size) in manifest.data_files().items():
        check.data_file(path / name, header, size, _regions(manifest, name))
    return check.damages


def _regions(manifest: fmt.Manifest, file: str) -> Iterator[Region]:
    """What lies in a data file, in order."""
    if file == fmt.RESIDENT:
        start = len(manifest.resident_header())
        for name, offset in manifest.tensor_offsets().items():
            tensor = manifest.tensors[name]
            yield Region(name, start + offset, tensor.stored_bytes, tensor.crc32c)
        return
    # Layers that share a file have the same checksums.
    layer = next(layer for layer in manifest.layers if layer.file == file)
    start = len(manifest.experts_header(layer.layer))
    size = manifest.layouts[layer.layer].record_bytes
    for expert, crc in enumerate(layer.crc32c):
        yield Region(f"expert {expert}", start + expert * size, size, crc)


@dataclass
class _Check:
    """Collects damages and counts the bytes that were checked."""

    progress: Progress | None
    total: int
    done: int = 0
    damages: list[Damage] = field(default_factory=list)

    def small_file(self, path: Path, file: fmt.SmallFile) -> None:
        """Size and SHA-256 of a text file."""
        with self._collecting():
            check_small_file(path, file)

    def data_file(self, path: Path, header: bytes, size: int, regions: Iterable[Region]) -> None:
        """Size, header and every region of a safetensors file."""
        before = self.done
        with self._collecting():
            check_size(path, size)
            with self._collecting():
                check_header(path, header)
            with opened(path) as fd:
                for region in regions:
                    with self._collecting():
                        self._region(fd, path, region)
        self._advance(before + size - self.done)

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        try:
            yield
        except (PackError, StorageError) as damage:
            self.damages.append(damage)

    def _region(self, fd: int, path: Path, region: Region) -> None:
        crc = 0
        for start in range(0, region.nbytes, PIECE_BYTES):
            piece = np.empty(min(PIECE_BYTES, region.nbytes - start), np.uint8)
            read_exactly(fd, piece.data, region.offset + start, path)
            crc = _native.crc32c(piece, crc)
            self._advance(len(piece))
        check_crc(crc, region.crc32c, f"{path}: {region.name}")

    def _advance(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)
