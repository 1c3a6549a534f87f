"""The pair of models that is compared: a pack and its GGUF twin, made once and kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmoe.bench.compare.child import Program, Progress
from flashmoe.bench.compare.twin import twin_plan, twin_tensors
from flashmoe.bench.synth import SyntheticCheckpoint
from flashmoe.errors import StorageError, UsageError
from flashmoe.files import storage_errors
from flashmoe.store.pack import pack_open_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions

# 4.5 bits per weight of an expert, 8.5 of the rest: the same as Q4_0 and Q8_0.
_OPTIONS = PackOptions.parse("q4", "q8", 64)
# Experts chosen by that many random tokens say whether routing spreads.
ROUTING_TOKENS = 48
# Headers and tokenizers, beside the tensors of a model.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Twins:
    """Two models on disk with the same shape and bits. config: their config.json."""

    pack: Path
    gguf: Path
    config: dict[str, Any]

    @property
    def pack_files(self) -> list[Path]:
        """Every file of the pack."""
        return sorted(file for file in self.pack.iterdir() if file.is_file())

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes on disk."""
        pack = sum(file.stat().st_size for file in self.pack_files)
        return {"pack": pack, "gguf": self.gguf.stat().st_size}


def make_twins(
    folder: Path, shape: str, layers: int | None, peer: Program, progress: Progress
) -> Twins:
    """The twins of a shape in a folder; what is there is used.

    Raises UsageError for an unknown shape or a missing package, StorageError for want of space.
    """
    with SyntheticCheckpoint(shape, layers) as checkpoint:
        config = checkpoint.config
        stem = f"{shape}-{config['num_hidden_layers']}"
        twins = Twins(folder / stem, folder / f"{stem}.gguf", config)
        size = sum(tensor.nbytes for tensor in twin_tensors(checkpoint))
        _make_room(folder, size * [twins.pack.exists(), twins.gguf.exists()].count(False))
        if not twins.gguf.exists():
            _write_twin(checkpoint, twins.gguf, peer, progress)
        if not twins.pack.exists():
            progress("writing the pack")
            pack_open_checkpoint(checkpoint, twins.pack, _OPTIONS)
    _check(PackedModel.open(twins.pack), config)
    return twins


def _make_room(folder: Path, nbytes: int) -> None:
    with storage_errors("cannot be made", folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    needed = nbytes + _SPARE_BYTES if nbytes else 0
    if free < needed:
        hint = "Choose another folder with --dir, or fewer --layers."
        expected = f"{needed} bytes free"
        raise StorageError(
            "not enough disk space", where=folder, expected=expected, got=free, hint=hint
        )


def _write_twin(
    checkpoint: SyntheticCheckpoint, path: Path, peer: Program, progress: Progress
) -> None:
    """The file appears under its name when it is complete."""
    partial = path.with_name(path.name + ".partial")
    peer.call("write", twin_plan(checkpoint, partial), progress)
    with storage_errors("cannot rename the finished file", path):
        partial.rename(path)


def _check(pack: PackedModel, config: dict[str, Any]) -> None:
    """A pack that was put there by hand must be the twin."""
    manifest = pack.manifest
    if pack.config != config:
        raise UsageError("another model than asked for", where=pack.path)
    if (manifest.experts_format, manifest.dense_format) != (_OPTIONS.experts, _OPTIONS.dense):
        raise UsageError("other weight formats than its twin's", where=pack.path)
