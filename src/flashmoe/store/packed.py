"""Reader of packed models: opens and checks, loads what is resident, locates expert records."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.directory import read_config_json
from flashmoe.errors import ChecksumError, PackError, UsageError
from flashmoe.files import opened, read_exactly, read_small, storage_errors
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes
from flashmoe.store import format as fmt
from flashmoe.store.extent import Extent
from flashmoe.store.manifest import MAX_BYTES, from_json
from flashmoe.store.resident import page_aligned, read_resident, resident_room
from flashmoe.store.rows import StoredRows


@dataclass(frozen=True)
class LoadedMatrix:
    """A resident matrix in memory: data is uint8 [format.nbytes(rows, cols)], 64-byte aligned."""

    format: Format
    rows: int
    cols: int
    data: Bytes


Loaded = LoadedMatrix | NDArray[np.float32]


@dataclass(frozen=True)
class PackedModel:
    """An opened pack: its manifest was validated and every file has the right size and header."""

    path: Path
    manifest: fmt.Manifest

    @classmethod
    def open(cls, path: Path) -> PackedModel:
        """Opens a packed model directory. Tensor data is not read: see load_resident, verify.

        Raises:
            UsageError: the path is not a directory.
            PackError: it is not a packed model, or a header or text file is damaged.
        """
        manifest = read_manifest(path)
        for name, (header, size) in manifest.data_files().items():
            check_size(path / name, size)
            check_header(path / name, header)
        for name, file in manifest.files.items():
            check_small_file(path / name, file)
        return cls(path, manifest)

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the checkpoint, as parsed."""
        return read_config_json(self.path)

    @property
    def text_path(self) -> Path:
        """The directory with tokenizer, chat template and the like."""
        return self.path

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest, which holds the checksums of all weights."""
        return hashlib.sha256(
            read_small(self.path / fmt.MANIFEST, MAX_BYTES, PackError)
        ).hexdigest()

    @property
    def data_files(self) -> tuple[Path, ...]:
        """The safetensors files, each once."""
        return tuple(self.path / name for name in self.manifest.data_files())

    @property
    def total_bytes(self) -> int:
        """Size of all files of the pack."""
        data = sum(size for _, size in self.manifest.data_files().values())
        small = sum(file.nbytes for file in self.manifest.files.values())
        with storage_errors("cannot read", self.path):
            return data + small + (self.path / fmt.MANIFEST).stat().st_size

    @property
    def reader_bytes(self) -> int:
        """Memory that a reader thread needs beside the slots: none, it reads into them."""
        return 0

    def check_unchanged(self) -> None:
        """Nothing to do: checksums tell."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of all resident tensors."""
        return self.resident_bytes_without(())

    def resident_bytes_without(self, skip: Collection[str]) -> int:
        """Bytes of the resident tensors but these."""
        tensors = self.manifest.tensors.items()
        return sum(tensor.stored_bytes for name, tensor in tensors if name not in skip)

    def resident_room(self, skip: Collection[str] = ()) -> int:
        """Bytes of memory that load_resident needs if it skips these tensors: whole pages."""
        return resident_room(self.manifest, skip)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all expert records."""
        return self.num_experts * self.manifest.layer_bytes

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer."""
        return self.manifest.experts.num_experts

    @property
    def files(self) -> tuple[Path, ...]:
        """The experts files, each once, in layer order."""
        return tuple(dict.fromkeys(self.path / layer.file for layer in self.manifest.layers))

    def extent(self, layer: int, expert: int) -> Extent:
        """Where the record of a routed expert lies."""
        return self._extents[layer][expert]

    @functools.cached_property
    def _extents(self) -> dict[int, tuple[Extent, ...]]:
        return {layer.layer: self._layer_extents(layer) for layer in self.manifest.layers}

    def _layer_extents(self, layer: fmt.ExpertLayer) -> tuple[Extent, ...]:
        start = len(self.manifest.experts_header(layer.layer))
        size = self.manifest.layouts[layer.layer].record_bytes
        return tuple(
            Extent(self.path / layer.file, start + expert * size, size, crc)
            for expert, crc in enumerate(layer.crc32c)
        )

    def rows(self, name: str) -> StoredRows:
        """A resident matrix as rows to be read when they are needed; see load_resident's skip."""
        matrix = self.manifest.tensors[name]
        assert isinstance(matrix, fmt.Matrix), "rows of a vector"
        offset = len(self.manifest.resident_header()) + self.manifest.tensor_offsets()[name]
        return StoredRows(self.path / fmt.RESIDENT, offset, matrix)

    def load_resident(
        self, buffer: Bytes | None = None, skip: Collection[str] = ()
    ) -> dict[str, Loaded]:
        """Reads resident tensors into one buffer and verifies their checksums.

        Args:
            buffer: uint8 [resident_room(skip)] from a page boundary; allocated if None. The
                result's arrays are views of it.
            skip: matrices that are not kept. They too are read and verified, in pieces.

        Returns:
            A LoadedMatrix or a float32 array of the manifest's shape by tensor name.

        Raises:
            ChecksumError: a tensor is damaged.
            StorageError: reading failed.
        """
        data = page_aligned(self.resident_room(skip)) if buffer is None else buffer
        stored = read_resident(self.path / fmt.RESIDENT, self.manifest, data, skip)
        return {name: view(self.manifest.tensors[name], part) for name, part in stored.items()}


def read_manifest(path: Path) -> fmt.Manifest:
    """The manifest of a packed model directory; the other files are not looked at."""
    with storage_errors("cannot read", path):
        is_directory, has_manifest = path.is_dir(), (path / fmt.MANIFEST).exists()
    if not is_directory:
        raise UsageError("is not a directory", where=path)
    if not has_manifest:
        hint = "Make one from a checkpoint with `flashmoe pack`"
        raise PackError(f"not a packed model: no {fmt.MANIFEST}", where=path, hint=hint)
    return from_json(read_small(path / fmt.MANIFEST, MAX_BYTES, PackError))


def view(tensor: fmt.Tensor, stored: Bytes) -> Loaded:
    """The bytes of a resident tensor, padding included, as what load_resident gives out."""
    if isinstance(tensor, fmt.Vector):
        return stored.view("<f4").reshape(tensor.shape)
    return LoadedMatrix(tensor.format, tensor.rows, tensor.cols, stored[: tensor.nbytes])


def check_header(path: Path, header: bytes) -> None:
    """Raises PackError if a safetensors file does not begin with the expected bytes."""
    found = np.empty(len(header), np.uint8)
    with opened(path) as fd:
        read_exactly(fd, found.data, 0, path)
    if found.tobytes() != header:
        raise PackError(f"header is not the one that {fmt.MANIFEST} describes", where=path)


def check_small_file(path: Path, file: fmt.SmallFile) -> None:
    """Raises PackError if a text file is not the one that was copied."""
    check_size(path, file.nbytes)
    digest = hashlib.sha256(read_small(path, file.nbytes, PackError)).hexdigest()
    if digest != file.sha256:
        raise ChecksumError("checksum does not match", where=path, expected=file.sha256, got=digest)


def check_size(path: Path, size: int) -> None:
    """Raises PackError if a file is missing or not of the expected size."""
    with storage_errors("cannot read", path):
        if not path.is_file():
            raise PackError("file is missing", where=path)
        got = path.stat().st_size
    if got != size:
        raise PackError(
            "file is truncated" if got < size else "file is too long",
            where=path,
            expected=f"{size} bytes",
            got=got,
        )
