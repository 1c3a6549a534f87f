"""A checkpoint directory as Hugging Face writes it: config.json and one or more shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.safetensors import Tensor, TensorFile
from flashmoe.errors import CheckpointError, UsageError
from flashmoe.files import read_small
from flashmoe.strict_json import Fields, parse

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_CONFIG = 4 << 20
MAX_INDEX = 64 << 20
MAX_SMALL_FILE = 256 << 20


class SourceFile(Protocol):
    """A file of a checkpoint, by what tells whether it has changed."""

    size: int
    mtime_ns: int


class Source(Protocol):
    """What the packer needs of an open checkpoint."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def files(self) -> Mapping[Path, SourceFile]:
        """The files that tensors are read from."""

    def read(self, tensor: Tensor, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes [start, start + nbytes) of a tensor -> uint8 [nbytes]."""

    def small_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """Content of those of the named text files that exist."""


class Checkpoint:
    """An open checkpoint: `config` (raw), `tensors` by name, and their bytes by range.

    Raises:
        UsageError: the path is not a directory.
        CheckpointError: it holds no usable checkpoint; the message names the file or tensor.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UsageError("is not a checkpoint directory", where=path)
        self.path = path
        self.config = read_config_json(path)
        self.files: dict[Path, TensorFile] = {}
        try:
            self.tensors = self._open_shards()
        except BaseException:
            self.close()
            raise

    def read(self, tensor: Tensor, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes [start, start + nbytes) of a tensor -> uint8 [nbytes]."""
        assert 0 <= start <= start + nbytes <= tensor.nbytes
        return self.files[tensor.path].read(tensor.offset + start, nbytes)

    def small_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """Content of those of the named text files that exist."""
        return {
            name: read_small(self.path / name, MAX_SMALL_FILE, CheckpointError)
            for name in names
            if (self.path / name).exists()
        }

    def close(self) -> None:
        """Closes all shards."""
        for file in self.files.values():
            file.close()
        self.files.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_shards(self) -> dict[str, Tensor]:
        if (self.path / SINGLE).exists():
            return self._open(SINGLE)
        if not (self.path / INDEX).exists():
            raise CheckpointError(
                "no weights found", where=self.path, expected=f"{SINGLE} or {INDEX}"
            )
        return self._open_indexed(read_index(self.path / INDEX))

    def _open(self, name: str) -> dict[str, Tensor]:
        path = self.path / name
        if not path.exists():
            raise CheckpointError("shard is missing", where=path)
        self.files[path] = TensorFile(path)
        return self.files[path].tensors

    def _open_indexed(self, weight_map: dict[str, str]) -> dict[str, Tensor]:
        shards = {name: self._open(name) for name in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            if name not in shards[shard]:
                raise CheckpointError(
                    "tensor of the index is not in its shard", where=self.path / shard, got=name
                )
        for shard, tensors in shards.items():
            for name in tensors:
                if weight_map.get(name) != shard:
                    raise CheckpointError(
                        "tensor of the shard is not in the index", where=self.path / shard, got=name
                    )
        return {name: shards[shard][name] for name, shard in weight_map.items()}


def read_config_json(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint or pack directory -> the raw object."""
    file = path / CONFIG
    if not file.exists():
        raise CheckpointError("config.json is missing", where=path)
    return parse(read_small(file, MAX_CONFIG, CheckpointError), file, CheckpointError)


def read_index(path: Path) -> dict[str, str]:
    """model.safetensors.index.json -> shard file name by tensor name."""
    raw = parse(read_small(path, MAX_INDEX, CheckpointError), path, CheckpointError)
    weight_map = Fields(raw, str(path), CheckpointError).fields("weight_map")
    shards = {name: weight_map.text(name) for name in raw["weight_map"]}
    for name, shard in shards.items():
        if not shard.endswith(".safetensors") or "/" in shard or not shard.isprintable():
            weight_map.fail(name, "the name of a .safetensors file beside the index", shard)
    return shards
