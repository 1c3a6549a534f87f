"""Packs of tiny checkpoints for the store tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant.layout import Bytes
from flashmoe.store import format as fmt
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from tests.support.tiny_checkpoints import Layout, write_checkpoint

OPTIONS = PackOptions.parse("q4", "q8", 32)


def make_pack(
    path: Path, family: str = "qwen3_5_moe", options: PackOptions = OPTIONS
) -> PackedModel:
    """A pack at path / "pack" of a checkpoint at path / "source"."""
    source = write_checkpoint(path / "source", family, Layout(fused=True))
    pack_checkpoint(source, path / "pack", options)
    return PackedModel.open(path / "pack")


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def read_record(model: PackedModel, layer: int, expert: int) -> Bytes:
    """The bytes of an expert record."""
    extent = model.extent(layer, expert)
    return np.fromfile(extent.path, np.uint8, extent.nbytes, offset=extent.offset)


def decode_record(
    layout: fmt.ExpertLayout, record: Bytes
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """gate [I, H], up [I, H] and down [H, I] of a record."""
    inner, hidden = layout.intermediate_size, layout.hidden_size
    gate_up = layout.gate_up.decode(record[: layout.gate_up_bytes], 2 * inner, hidden)
    blocks = gate_up.reshape(inner // 8, 2, 8, hidden)
    down = record[layout.down_offset : layout.down_offset + layout.down_bytes]
    return (
        blocks[:, 0].reshape(inner, hidden),
        blocks[:, 1].reshape(inner, hidden),
        layout.down.decode(down, hidden, inner),
    )
