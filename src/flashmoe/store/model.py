"""What an engine is built from: a packed model, or a checkpoint that runs in place."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from flashmoe.checkpoint.directory import INDEX, SINGLE
from flashmoe.files import storage_errors
from flashmoe.layers.embedding import BlockSource
from flashmoe.quant.layout import Bytes
from flashmoe.store import format as fmt
from flashmoe.store.extent import Extent
from flashmoe.store.gguf_source import SUFFIX
from flashmoe.store.inplace import InPlaceModel
from flashmoe.store.landing import Landing
from flashmoe.store.packed import Loaded, PackedModel


class RowBlocks(BlockSource, Protocol):
    """Rows of a resident matrix, read when they are asked for."""

    @property
    def buffer_bytes(self) -> int:
        """Memory that the largest call takes."""

    def close(self) -> None: ...


class StoredModel(Protocol):
    """A model on disk, its headers checked; PackedModel says what the members mean."""

    @property
    def path(self) -> Path: ...
    @property
    def manifest(self) -> fmt.Manifest:
        """Formats, shapes and layout of what memory will hold."""

    @property
    def text_path(self) -> Path:
        """The directory with tokenizer, chat template and the like."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def identity(self) -> str:
        """Differs between models whose weights differ."""

    @property
    def total_bytes(self) -> int:
        """Size of all files."""

    @property
    def data_files(self) -> tuple[Path, ...]:
        """Files of weights, each once."""

    @property
    def resident_bytes(self) -> int: ...
    def resident_bytes_without(self, skip: Collection[str]) -> int: ...
    def resident_room(self, skip: Collection[str] = ()) -> int: ...
    @property
    def expert_bytes(self) -> int: ...
    @property
    def reader_bytes(self) -> int:
        """Memory that a reader thread needs beside the slots."""

    @property
    def num_experts(self) -> int: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    def extent(self, layer: int, expert: int) -> Extent | Landing: ...
    def rows(self, name: str) -> RowBlocks: ...
    def load_resident(
        self, buffer: Bytes | None = None, skip: Collection[str] = ()
    ) -> dict[str, Loaded]: ...
    def check_unchanged(self) -> None:
        """Raises if a file is not the one whose header was read, as far as that can be told."""


def open_model(path: Path) -> StoredModel:
    """Opens a packed model or, where there is no manifest, a checkpoint to run in place.

    Raises UsageError and PackError as PackedModel.open, CheckpointError as InPlaceModel.open.
    """
    return InPlaceModel.open(path) if is_checkpoint(path) else PackedModel.open(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a GGUF file or a directory with weights of a checkpoint and no manifest."""
    with storage_errors("cannot read", path):
        if path.suffix == SUFFIX:
            return path.is_file()
        weights = any((path / name).exists() for name in (SINGLE, INDEX))
        weights = weights or any(path.glob(f"*{SUFFIX}"))
        return weights and not (path / fmt.MANIFEST).exists()
