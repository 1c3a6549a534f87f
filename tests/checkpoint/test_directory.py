from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.checkpoint.directory import Checkpoint, read_index
from flashmoe.errors import CheckpointError, FlashMoeError, StorageError, UsageError
from tests.support.tiny_checkpoints import Layout, write_checkpoint

INDEX = "model.safetensors.index.json"


def open_tensors(path: Path) -> set[str]:
    with Checkpoint(path) as checkpoint:
        return set(checkpoint.tensors)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", "qwen3_moe", Layout(shards=3))


def edit_index(path: Path, **changes: Any) -> None:
    index = json.loads((path / INDEX).read_text())
    weight_map = {**index["weight_map"], **changes}
    index["weight_map"] = {k: v for k, v in weight_map.items() if v is not None}
    (path / INDEX).write_text(json.dumps(index))


def test_one_and_many_shards_hold_the_same(tmp_path: Path, sharded: Path) -> None:
    single = write_checkpoint(tmp_path / "single", "qwen3_moe")
    with Checkpoint(single) as one, Checkpoint(sharded) as many:
        assert one.tensors.keys() == many.tensors.keys()
        for name, tensor in one.tensors.items():
            other = many.tensors[name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
            assert (one.read(tensor, 0, 8) == many.read(other, 0, 8)).all()


def test_reads_ranges(sharded: Path) -> None:
    with Checkpoint(sharded) as checkpoint:
        tensor = checkpoint.tensors["model.norm.weight"]
        whole = checkpoint.read(tensor, 0, tensor.nbytes)
        assert (checkpoint.read(tensor, 6, 10) == whole[6:16]).all()


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors: shard is missing"):
        Checkpoint(sharded)


def test_tensor_of_the_index_that_its_shard_lacks(sharded: Path) -> None:
    edit_index(sharded, ghost="model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="not in its shard; got ghost"):
        Checkpoint(sharded)


def test_tensor_that_the_index_does_not_list(sharded: Path) -> None:
    edit_index(sharded, **{"model.norm.weight": None})
    with pytest.raises(CheckpointError, match=r"not in the index; got model\.norm\.weight"):
        Checkpoint(sharded)


@pytest.mark.parametrize("name", ["../evil.safetensors", "a.bin", "", 7, "x\n.safetensors"])
def test_shard_names_stay_in_the_directory(sharded: Path, name: Any) -> None:
    edit_index(sharded, ghost=name)
    with pytest.raises(CheckpointError, match="ghost"):
        Checkpoint(sharded)


def test_no_weights(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", "qwen3_moe")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights found; expected model\.safetensors or"):
        Checkpoint(path)


def test_no_config(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", "qwen3_moe")
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint(path)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a checkpoint directory"):
        Checkpoint(tmp_path / "absent")


def test_unreadable_shard(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c", "qwen3_moe")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()
    with pytest.raises(StorageError, match=r"model\.safetensors.*Is a directory"):
        Checkpoint(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_index_raises_typed_errors_only(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = bytearray(json.dumps({"metadata": {}, "weight_map": {"a": "b.safetensors"}}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.mktemp("index") / INDEX
    path.write_bytes(text)
    try:
        shards = read_index(path)
    except FlashMoeError:
        return
    assert all(shard.endswith(".safetensors") and "/" not in shard for shard in shards.values())
