"""The GGUF header reader: what is damaged is a typed error, quickly and in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.checkpoint.gguf import GgufFile
from flashmoe.errors import CheckpointError, FlashMoeError, UsageError
from flashmoe.store.gguf_source import GgufCheckpoint
from flashmoe.store.opening import open_checkpoint
from tests.support.gguf_files import part_path, write_gguf

HEADER = 3000  # bytes at the start of the sound file, most of them its header


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    tokens = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1, 1, 1],
    }
    write_gguf(path, "qwen3_moe", extra=tokens, num_hidden_layers=1)
    return path.read_bytes()


def read(path: Path, data: bytes) -> GgufFile:
    path.write_bytes(data)
    return GgufFile(path)


def test_metadata_and_tensors_are_those_of_the_writer(sound: bytes, tmp_path: Path) -> None:
    file = read(tmp_path / "m.gguf", sound)
    assert file.metadata["general.architecture"] == "qwen3moe"
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ab"]
    embedding = file.tensors["token_embd.weight"]
    assert embedding.shape == (100, 64)
    assert embedding.dtype == "F32"
    assert embedding.offset % 32 == 0
    file.close()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_are_typed_errors(
    sound: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, HEADER))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(sound)))
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(damaged[:cut]))
    tracemalloc.start()
    try:
        checkpoint = GgufCheckpoint(path)
        checkpoint.small_files(("tokenizer.json", "generation_config.json"))
        checkpoint.close()
    except FlashMoeError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "too many or too long: tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "too long: key"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 1 << 20),
            "header is truncated",
        ),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 1, 0)
            + struct.pack("<Q1sIQIQ", 1, b"t", 1, 256, 16, 0),
            "type of t is not supported; expected F32.*got type 16 of ggml",
        ),
    ],
)
def test_refusals(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "m.gguf", data)


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "m.gguf", "qwen3_moe", parts=3)
    with open_checkpoint(part_path(tmp_path / "m.gguf", 1, 3)) as checkpoint:
        names = checkpoint.tensors
        assert names.keys() == tensors.keys()
        name = "model.layers.1.mlp.experts.4.down_proj.weight"
        raw = checkpoint.read(names[name], 0, names[name].nbytes)
    assert np.array_equal(raw.view("<f4").reshape(tensors[name].shape), tensors[name])
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
    part_path(tmp_path / "m.gguf", 2, 3).unlink()
    with pytest.raises(CheckpointError, match="part of a split model is missing"):
        open_checkpoint(part_path(tmp_path / "m.gguf", 0, 3))


def test_a_directory_with_two_models_wants_one_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(tmp_path / f"{name}.gguf", "olmoe")
    with pytest.raises(UsageError, match="holds several GGUF models"):
        open_checkpoint(tmp_path)
