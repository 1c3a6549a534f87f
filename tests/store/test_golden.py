"""The format, frozen. A change here is a new format version, not a new expected value.

docs/format.md walks through the bytes of GOLDEN_BLOCKS.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.store.encode import encode
from flashmoe.store.format import ExpertFormats
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.plan import PackOptions
from tests.store.support import contents
from tests.support.tiny_checkpoints import Tensors, write_checkpoint

# (first 32 bytes, last 32 bytes) of the block of golden_matrix(8, 64).
GOLDEN_BLOCKS = {
    Format("q4", 64): (
        "70d63b92e74da3085db4197fc53b81e74c92f85da3196fc52a81d64c92f75da3",
        "d53dd13dd33dd53dd33dd33dd53dd33d48bf48bf44bf48bf48bf44bf48bf48bf",
    ),
    Format("q8", 64): (
        "81df3d9af351af0d66c3217fd73593f14aa70563bb1977d52e8be9479ffd5bb9",
        "2693c93b2693c93b2693c93b2693c93b2693c93b2693c93b2693c93b2693c93b",
    ),
    Format("mxfp4", 32): (
        "9f6be52e79d64ef1c65df3976ce51f7ad63e70c64df2a76ce40f6ad62e78c64e",
        "6ad63e70c64ef2a75ce40f6ae52e78c64ef2b75de49f6be57c7c7c7c7c7c7c7c",
    ),
    Format("bf16"): (
        "48bf50bea0bd003f203fc0be80bea83ee83e0cbfd8be203e903e38bf18bf80bc",
        "b03e28bf08bf403d303e403f34bf00be0000143f343f98be30bed03e083ff0be",
    ),
}
# First half of each file's SHA-256.
GOLDEN_FILES = {
    "qwen3_moe": {
        "experts-000.safetensors": "9087d809975da2cf9a7f3e5f61b95a95",
        "experts-001.safetensors": "9a7019e5991bf0b5d7240669841f211b",
        "flashmoe.json": "5e615c0b6bbb3e24c05c8d033adbe856",
        "resident.safetensors": "4e80b402f0ff1ecf10b9cbbe02af0b95",
    },
    "gpt_oss": {
        "experts-000.safetensors": "3b5ffdc3ce7f06f5b3d0e99580967ad8",
        "experts-001.safetensors": "5ebf7cc9af514b5822784ff55ee1988b",
        "flashmoe.json": "99cb6da377db0a9c444616eb74e12e51",
        "resident.safetensors": "553f5d4efac48b922f196f483766303d",
    },
    "qwen3_5_moe": {
        "experts-000.safetensors": "e67f95b5e0d1ddc475055c5d98d2b8cd",
        "experts-001.safetensors": "17241be297bd910bd23789663a3e56fb",
        "experts-002.safetensors": "6c995d8a1aee81ab2ac72bab15afa530",
        "experts-003.safetensors": "9087d809975da2cf9a7f3e5f61b95a95",
        "flashmoe.json": "9f443290aac1bec051d7d1ddd0e7bde8",
        "resident.safetensors": "d91cdfeb8fb3abe4ca3881ac50179261",
    },
}


OPTIONS = PackOptions.parse("q4", "q8", 32)


def golden_matrix(rows: int, cols: int, phase: int = 0) -> NDArray[np.float32]:
    """w[i] = ((37 i + phase) mod 101 - 50) / 64 in row-major order: exact in bf16."""
    i = np.arange(rows * cols, dtype=np.int64)
    w = ((37 * i + phase) % 101 - 50) / 64
    return w.astype(np.float32).reshape(rows, cols)


@pytest.mark.parametrize("format_", GOLDEN_BLOCKS)
def test_blocks(format_: Format) -> None:
    w = golden_matrix(8, 64)
    raw, found = w.view(np.uint8), np.empty(format_.nbytes(8, 64), np.uint8)
    encode(_native.Pool(1), format_, raw, "F32", found)
    assert (found[:32].tobytes().hex(), found[-32:].tobytes().hex()) == GOLDEN_BLOCKS[format_]
    np.testing.assert_array_equal(found, format_.encode(w))


# Version 5: the second layer has its own formats.
GOLDEN_MIXED = {
    "experts-000.safetensors": "9087d809975da2cf9a7f3e5f61b95a95",
    "experts-001.safetensors": "760d135b5548423729d256bde948bea9",
    "flashmoe.json": "7d5b689888b5e9fd5cc265804320fcea",
    "resident.safetensors": "4e80b402f0ff1ecf10b9cbbe02af0b95",
}
Q4, Q8 = Format("q4", 32), Format("q8", 32)


@pytest.mark.parametrize("family", GOLDEN_FILES)
def test_files(tmp_path: Path, family: str) -> None:
    assert digests(tmp_path, family, OPTIONS) == GOLDEN_FILES[family]


def test_files_of_layers_that_differ(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, by_layer={1: ExpertFormats(Q4, Q8)})
    assert digests(tmp_path, "qwen3_moe", options) == GOLDEN_MIXED


def digests(path: Path, family: str, options: PackOptions) -> dict[str, str]:
    """Of the files of a golden pack."""

    def set_weights(tensors: Tensors) -> None:
        for phase, name in enumerate(sorted(tensors)):
            tensors[name][:] = golden_matrix(1, tensors[name].size, phase).reshape(
                tensors[name].shape
            )

    source = write_checkpoint(path / "golden", family, change=set_weights)
    pack_checkpoint(source, path / "pack", options)
    return {
        name: hashlib.sha256(data).hexdigest()[:32]
        for name, data in contents(path / "pack").items()
        if name.endswith("safetensors") or name == "flashmoe.json"
    }
