"""A GGUF file, or all parts of a split one, read as if it were a checkpoint from the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.gguf import GgufFile
from flashmoe.checkpoint.gguf_tensors import Made
from flashmoe.checkpoint.gguf_tokenizer import text_files
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError, UsageError
from flashmoe.files import read_small
from flashmoe.models.gguf_config import read_config
from flashmoe.models.gguf_layers import as_on_the_hub
from flashmoe.models.gguf_names import hub_name

SUFFIX = ".gguf"
MAX_TEXT = 256 << 20
MAX_PARTS = 1000
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_EMBEDDING = "token_embd.weight"


class GgufCheckpoint:
    """An open GGUF model: what flashmoe.checkpoint.directory.Source asks for.

    path: the file, or any part of a split one. A tokenizer.json, chat_template.jinja or
    generation_config.json beside it is used instead of what the metadata say.

    Raises:
        UsageError: no such file.
        CheckpointError: damaged, incomplete or not supported.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError("is not a GGUF file", where=path)
        self.path = path
        self.files: dict[Path, GgufFile] = {}
        self._last: tuple[str, NDArray[np.uint8]] | None = None
        try:
            for part in _parts(path):
                self.files[part] = GgufFile(part)
            self._read_headers()
        except BaseException:
            self.close()
            raise

    def _read_headers(self) -> None:
        stored = _together(list(self.files.values()))
        self._metadata = next(iter(self.files.values())).metadata
        self.config: dict[str, Any] = read_config(self._metadata, stored, self.path)
        if _EMBEDDING not in stored:
            raise CheckpointError("tensor is missing", where=self.path, expected=_EMBEDDING)
        self.config["vocab_size"] = stored[_EMBEDDING].shape[0]
        layers = self.config["num_hidden_layers"]
        kind = self.config["model_type"]
        entries = as_on_the_hub(_renamed(stored, kind, layers), self.config)
        self.tensors = {
            name: entry.tensor if isinstance(entry, Made) else entry
            for name, entry in entries.items()
        }
        self._made = {e.tensor.name: e for e in entries.values() if isinstance(e, Made)}

    def read(self, tensor: Tensor, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes [start, start + nbytes) of a tensor -> uint8 [nbytes]."""
        assert 0 <= start <= start + nbytes <= tensor.nbytes
        if tensor.name not in self._made:
            return self.files[tensor.path].read(tensor.offset + start, nbytes)
        # Kept for the next piece: they come in order. Other threads may replace it meanwhile.
        last = self._last
        if last is None or last[0] != tensor.name:
            last = self._last = tensor.name, self._made[tensor.name].make(self._whole)
        return last[1][start : start + nbytes]

    def _whole(self, tensor: Tensor) -> NDArray[np.uint8]:
        return self.files[tensor.path].read(tensor.offset, tensor.nbytes)

    def small_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the named text files that lie beside the model or follow from its metadata."""
        made = text_files(self._metadata, self.path)
        made["config.json"] = json.dumps(self.config, indent=2).encode() + b"\n"
        for name in names:
            beside = self.path.parent / name
            if name != "config.json" and beside.is_file():
                made[name] = read_small(beside, MAX_TEXT, CheckpointError)
        return {name: made[name] for name in names if name in made}

    def close(self) -> None:
        """Closes all parts."""
        for file in self.files.values():
            file.close()
        self.files.clear()

    def __enter__(self) -> GgufCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parts(path: Path) -> list[Path]:
    """All files of a split model, in order; of any other one the file itself."""
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 1 <= count <= MAX_PARTS:
        raise CheckpointError(
            "number of parts", where=path, expected=f"1 to {MAX_PARTS}", got=count
        )
    parts = [
        path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}{SUFFIX}") for i in range(1, count + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise CheckpointError("part of a split model is missing", where=part)
    return parts


def _together(files: Sequence[GgufFile]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        twice = tensors.keys() & file.tensors.keys()
        if twice:
            raise CheckpointError("tensor is in two parts", where=file.path, got=min(twice))
        tensors |= file.tensors
    return tensors


def _renamed(stored: Mapping[str, Tensor], model_type: str, layers: int) -> dict[str, Tensor]:
    """Tensors under the names of the hub. Raises CheckpointError for two of the same name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        new = hub_name(name, model_type, layers)
        if new in renamed:
            raise CheckpointError(
                "two names of the same tensor",
                where=f"{tensor.path}: {new}",
                expected="one of them",
                got=f"{renamed[new].name}, {name}",
            )
        renamed[new] = tensor
    return renamed
