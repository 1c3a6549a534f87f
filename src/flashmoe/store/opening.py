"""Opens whatever holds a model that can be packed."""

from __future__ import annotations

from pathlib import Path

from flashmoe.checkpoint.directory import Checkpoint
from flashmoe.errors import UsageError
from flashmoe.store.gguf_source import SUFFIX, GgufCheckpoint

OpenCheckpoint = Checkpoint | GgufCheckpoint


def open_checkpoint(path: Path) -> OpenCheckpoint:
    """A checkpoint directory, a .gguf file, or a directory with one GGUF model.

    Raises UsageError or CheckpointError, as Checkpoint and GgufCheckpoint do.
    """
    if path.suffix == SUFFIX:
        return GgufCheckpoint(path)
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    if not files or ((path / "config.json").exists() and any(path.glob("*.safetensors"))):
        return Checkpoint(path)
    models = {
        file.name.rpartition("-of-")[2] if "-of-" in file.name else file.name for file in files
    }
    if len(models) > 1 or ("-of-" not in files[0].name and len(files) > 1):
        raise UsageError(
            "directory holds several GGUF models",
            where=path,
            expected="one of its files",
            got=", ".join(file.name for file in files[:4]),
        )
    return GgufCheckpoint(files[0])
