"""A checkpoint that runs as it is: experts are turned into records while they are read, the rest is
encoded in memory while loading. Both become what `pack`, told to keep every weight, would store.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.checkpoint.directory import Source
from flashmoe.errors import CheckpointError
from flashmoe.files import storage_errors
from flashmoe.quant import Format
from flashmoe.quant.layout import ROWS, Bytes
from flashmoe.store import format as fmt
from flashmoe.store.landing import PIECE_BYTES, Landing, Program
from flashmoe.store.landing_sources import make_landing
from flashmoe.store.opening import OpenCheckpoint, open_checkpoint
from flashmoe.store.pack import Described, plan_pack
from flashmoe.store.packed import Loaded, view
from flashmoe.store.plan import (
    CopyVector,
    EncodeMatrix,
    Item,
    PackOptions,
    PackPlan,
    fingerprint,
)
from flashmoe.store.resident import page_aligned
from flashmoe.store.rows import PIECE_BLOCKS
from flashmoe.store.stream import encoded_rows, item_pieces

# Reading and encoding of different tensors side by side.
_LOADERS = 4

# What the source is, kept as it is; bf16 for what no format holds.
EXACT = PackOptions.parse("same", "same", 32)

CONFIG = "config.json"
Identity = tuple[int, int]
"""Size in bytes and time of the last change in ns: what tells a file from a changed one."""


@dataclass(frozen=True)
class InPlaceModel:
    """An open checkpoint: headers were read strictly, and all that is needed is there.

    plan: what `pack` would do; its checksums are zeros, as nobody has made any. landings: by layer
    and expert. files_found: of each shard.
    """

    path: Path
    plan: PackPlan
    config: dict[str, Any]
    landings: Mapping[int, tuple[Landing, ...]]
    files_found: Mapping[Path, Identity]

    @classmethod
    def open(cls, path: Path) -> InPlaceModel:
        """Opens a checkpoint directory or a GGUF model. No weight is read.

        Raises:
            UsageError: the path is not a directory, or no GGUF file.
            CheckpointError: it is damaged, unsupported, contradicts its config, or its experts are
                in a form that must be packed to run; the message names file and tensor.
        """
        with open_checkpoint(path) as checkpoint:
            files = {name: (file.size, file.mtime_ns) for name, file in checkpoint.files.items()}
            return dataclasses.replace(cls.described(checkpoint), path=path, files_found=files)

    @classmethod
    def described(cls, checkpoint: Described) -> InPlaceModel:
        """Of headers alone, to plan with: its files need not be here. Errors as for `open`."""
        plan = plan_pack(checkpoint, EXACT)
        return cls(checkpoint.path, plan, checkpoint.config, _landings(plan), {})

    @property
    def manifest(self) -> fmt.Manifest:
        """Formats, shapes and layout of what memory will hold."""
        return self.plan.manifest

    @functools.cached_property
    def identity(self) -> str:
        """Differs for another plan, and for files of other names, sizes or times."""
        names = {path.name: found for path, found in self.files_found.items()}
        return fingerprint(self.plan, names)

    @functools.cached_property
    def text_path(self) -> Path:
        """A directory with tokenizer and templates: of a GGUF model one that goes with this."""
        if self.path.is_dir() and (self.path / CONFIG).exists():
            return self.path
        directory = Path(tempfile.mkdtemp(prefix="flashmoe-"))
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        with open_checkpoint(self.path) as checkpoint:
            for name, data in checkpoint.small_files(fmt.SMALL_FILES).items():
                (directory / name).write_bytes(data)
        return directory

    @property
    def data_files(self) -> tuple[Path, ...]:
        """The shards."""
        return tuple(self.files_found)

    @property
    def total_bytes(self) -> int:
        """Size of the shards and of the text files that a pack would have."""
        small = sum(file.nbytes for file in self.manifest.files.values())
        return small + sum(size for size, _ in self.files_found.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of all resident tensors in memory."""
        return self.resident_bytes_without(())

    def resident_bytes_without(self, skip: Collection[str]) -> int:
        """Bytes of the resident tensors but these."""
        return sum(item.nbytes for item in self._resident_items(skip))

    def resident_room(self, skip: Collection[str] = ()) -> int:
        """Bytes of memory that load_resident needs: tensors at multiples of 64, whole pages."""
        sizes = [fmt.align(item.nbytes, fmt.BLOB_ALIGN) for item in self._resident_items(skip)]
        return fmt.align(sum(sizes), fmt.PAGE)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all expert records, as memory holds them."""
        return sum(landing.nbytes for layer in self.landings.values() for landing in layer)

    @property
    def reader_bytes(self) -> int:
        """Memory of a reader thread for what it turns: the largest piece."""
        first = {layer[0] for layer in self.landings.values()}
        return max(piece.nbytes for one in first for piece in one.pieces()) + PIECE_BYTES // 8

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer."""
        return self.manifest.experts.num_experts

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """The shards that hold experts, in layer order."""
        origins = (o for layer in self.landings.values() for one in layer for o in one.origins)
        return tuple(dict.fromkeys(origin.path for origin in origins))

    def extent(self, layer: int, expert: int) -> Landing:
        """Where an expert lies and how it becomes a record."""
        return self.landings[layer][expert]

    def rows(self, name: str) -> SourceRows:
        """A resident matrix as rows to be read when they are needed."""
        parts = next(item.parts for item in self._resident_items() if item.key == name)
        part = None if isinstance(parts, CopyVector) else parts[0]
        assert isinstance(part, EncodeMatrix), "rows of a vector"
        return SourceRows(self, part)

    def load_resident(
        self, buffer: Bytes | None = None, skip: Collection[str] = ()
    ) -> dict[str, Loaded]:
        """Reads resident tensors and encodes them into one buffer.

        Args:
            buffer: uint8 [resident_room(skip)] from a page boundary; allocated if None. The
                result's arrays are views of it.
            skip: matrices that are not read.

        Raises:
            CheckpointError: a file has changed; NonFiniteError: a weight is not finite.
            StorageError: reading failed.
        """
        data = page_aligned(self.resident_room(skip)) if buffer is None else buffer
        places = self._places(data, skip)
        with self.checkpoint() as checkpoint, ThreadPoolExecutor(_LOADERS) as loaders:
            jobs = [loaders.submit(_fill, checkpoint, item, part) for item, part in places]
            for job in jobs:
                job.result()
        tensors = self.manifest.tensors
        return {item.key: view(tensors[item.key], part) for item, part in places}

    @contextmanager
    def checkpoint(self) -> Iterator[Source]:
        """The checkpoint, open again and found unchanged before and after its use."""
        with open_checkpoint(self.path) as checkpoint:
            self.check_unchanged()
            yield checkpoint
        self.check_unchanged()

    def check_unchanged(self, paths: Collection[Path] = ()) -> None:
        """Raises CheckpointError if one of these shards (default: any) has another size or time
        than when it was opened."""
        for path in paths or self.files_found:
            with storage_errors("cannot read", path):
                status = os.stat(path)
            if (status.st_size, status.st_mtime_ns) != self.files_found[path]:
                raise changed(path)

    def _resident_items(self, skip: Collection[str] = ()) -> list[Item]:
        items = (item for item in self.plan.items if item.file == fmt.RESIDENT)
        return [item for item in items if item.key not in skip]

    def _places(self, data: Bytes, skip: Collection[str]) -> list[tuple[Item, Bytes]]:
        places, position = [], 0
        for item in self._resident_items(skip):
            places.append((item, data[position : position + item.nbytes]))
            position += fmt.align(item.nbytes, fmt.BLOB_ALIGN)
        return places


def changed(path: Path) -> CheckpointError:
    """The error for a file that somebody wrote into while the model was open."""
    return CheckpointError(
        "the file has changed since the model was opened",
        where=path,
        hint="Load the model again when nobody writes into the checkpoint",
    )


def _landings(plan: PackPlan) -> dict[int, tuple[Landing, ...]]:
    """By layer and expert; experts of the same shape share their program."""
    items = [item for item in plan.items if item.file != fmt.RESIDENT]
    layers = [layer.layer for layer in plan.manifest.layers]
    shared: dict[Program, Program] = {}
    found = []
    for _, group in groupby(items, lambda item: item.file):
        made = [_landing(item) for item in group]
        programs = [shared.setdefault(one.program, one.program) for one in made]
        found.append(
            tuple(
                Landing(program, one.origins) for program, one in zip(programs, made, strict=True)
            )
        )
    return dict(zip(layers, found, strict=True))


def _landing(item: Item) -> Landing:
    assert not isinstance(item.parts, CopyVector), "an expert is no vector"
    return make_landing(item.parts, item.nbytes)


def _fill(checkpoint: Source, item: Item, place: Bytes) -> None:
    pool, position = _native.Pool(1), 0
    for piece in item_pieces(pool, checkpoint, item):
        place[position : position + len(piece)] = piece
        position += len(piece)


class SourceRows:
    """The blocks of 8 rows of a matrix of a checkpoint, encoded when asked for; as StoredRows."""

    def __init__(self, model: InPlaceModel, part: EncodeMatrix) -> None:
        self.format: Format = part.format
        self.cols = part.cols
        self._model, self._part = model, part
        self._pool = _native.Pool(1)
        self._checkpoint: OpenCheckpoint | None = None

    @property
    def buffer_bytes(self) -> int:
        """Memory that a call for PIECE_BLOCKS blocks takes."""
        return PIECE_BLOCKS * self.format.nbytes(ROWS, self.cols)

    def blocks(self, numbers: NDArray[np.integer]) -> Bytes:
        """Blocks by number [n] -> their bytes, one after the other, in kernel layout.

        Raises StorageError if the file cannot be read, CheckpointError if it has changed,
        NonFiniteError for a weight that is not finite.
        """
        checkpoint = self._open()
        data = np.empty((len(numbers), self.format.nbytes(ROWS, self.cols)), dtype=np.uint8)
        for row, number in zip(data, numbers.tolist(), strict=True):
            start, stop = ROWS * number, min(ROWS * (number + 1), self._part.rows)
            row[:] = encoded_rows(self._pool, checkpoint, self._part, start, stop)
        self._model.check_unchanged({source.tensor.path for source in self._part.sources})
        return data.reshape(-1)

    def close(self) -> None:
        """Close the files; the next call opens them again."""
        if self._checkpoint is not None:
            self._checkpoint.close()
            self._checkpoint = None

    def _open(self) -> OpenCheckpoint:
        if self._checkpoint is None:
            self._checkpoint = open_checkpoint(self._model.path)
        return self._checkpoint
