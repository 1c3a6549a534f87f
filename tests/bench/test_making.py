"""Synthetic packs: on a small disk layers share experts' files; routing is as asked for."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.bench import shapes
from flashmoe.bench.making import check_curve, make_synthetic
from flashmoe.bench.routing import measure_routing
from flashmoe.bench.synth import SyntheticCheckpoint
from flashmoe.errors import StorageError, UsageError
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from flashmoe.store.verify import verify
from tests.support.tolerances import ROUTING_SHARE

OPTIONS = PackOptions.parse("q4", "q8", 64)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"hidden_size": 256, "moe_intermediate_size": 64, "num_experts": 32, "vocab_size": 500}
    shape = {**shapes.SHAPES["qwen3-30b-a3b"], **own}
    monkeypatch.setitem(shapes.SHAPES, "small", shape)


def make(path: Path, layers: int, distinct: int | None = None, skew: str | None = None) -> Path:
    checkpoint = SyntheticCheckpoint("small", layers, skew=skew)
    make_synthetic(checkpoint, path, OPTIONS, distinct)
    return path


def test_layers_share_files_in_turn(tmp_path: Path) -> None:
    pack = PackedModel.open(make(tmp_path / "m", layers=5, distinct=2))
    assert [layer.shares for layer in pack.manifest.layers] == [None, None, 0, 1, 0]
    assert sorted(path.name for path in pack.files) == [
        "experts-000.safetensors",
        "experts-001.safetensors",
    ]
    assert pack.extent(4, 7) == pack.extent(0, 7)
    assert verify(pack.path) == []


def test_experts_of_layers_that_share_are_cached_apart(tmp_path: Path) -> None:
    """The cache knows an expert by layer and number: a shared record is read for each layer."""
    path = make(tmp_path / "m", layers=4, distinct=1)
    with flashmoe.load(path, context_length=64, cache="all") as model:
        use = measure_routing(model, tokens=16)
        assert model.stats.cache_misses == sum(use.distinct)


def test_as_many_files_as_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PackedModel.open(make(tmp_path / "whole", layers=4)).manifest
    assert all(layer.shares is None for layer in whole.layers)
    files = whole.data_files()
    one, rest = files["experts-000.safetensors"][1], files["resident.safetensors"][1]
    free = int(((1 << 30) + rest + 2.5 * one) / 0.95) + (1 << 17)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    pack = PackedModel.open(make(tmp_path / "m", layers=4))
    assert len(pack.files) == 2


def test_no_room_for_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 0, 1 << 20))
    with pytest.raises(StorageError, match="one layer's experts"):
        make(tmp_path / "m", layers=2)


@pytest.mark.parametrize("distinct", [0, 3])
def test_impossible_numbers_of_files(tmp_path: Path, distinct: int) -> None:
    with pytest.raises(UsageError, match="--distinct: bad number of files; expected 1 to 2"):
        make(tmp_path / "m", layers=2, distinct=distinct)


def test_routing_follows_the_curve(tmp_path: Path) -> None:
    path = make(tmp_path / "m", layers=3, skew="zipf:1")
    checkpoint = SyntheticCheckpoint("small", 3, skew="zipf:1")
    assert checkpoint.skew is not None
    with flashmoe.load(path, context_length=512) as model:
        use = measure_routing(model, tokens=400)
    check = check_curve(use, checkpoint.skew, use.experts_per_token)
    assert check.worst < ROUTING_SHARE
    assert np.all(np.diff(check.wanted) > 0)


def test_without_a_curve_routing_spreads(tmp_path: Path) -> None:
    with flashmoe.load(make(tmp_path / "m", layers=2), context_length=64) as model:
        assert measure_routing(model).worst > 0.8


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-next-80b",
        "gpt-oss-120b",
        "deepseek-v3",
        "kimi-k2",
        "mixtral-8x7b",
        "glm-4.5",
        "minimax-m2",
    ],
)
@pytest.mark.parametrize("skew", [None, "zipf:1"])
def test_every_family_is_made_and_routed_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, skew: str | None
) -> None:
    own = {"hidden_size": 256, "num_experts": 32, "num_experts_per_tok": 4, "vocab_size": 500}
    own |= {"moe_intermediate_size": 64, "intermediate_size": 64, "num_attention_heads": 8}
    monkeypatch.setitem(shapes.SHAPES, "small", {**shapes.SHAPES[name], **own})
    with flashmoe.load(make(tmp_path / "m", layers=4, skew=skew), context_length=512) as model:
        use = measure_routing(model, tokens=400)
    if skew is None:
        assert use.worst > 0.8
        return
    curve = SyntheticCheckpoint("small", 4, skew=skew).skew
    assert curve is not None
    assert check_curve(use, curve, use.experts_per_token).worst < ROUTING_SHARE


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown shape.*deepseek-v4-flash.*got deepseek-v5"):
        SyntheticCheckpoint("deepseek-v5")


def test_made_up_tables_name_experts_that_exist() -> None:
    with SyntheticCheckpoint("deepseek-v4-flash", 1) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.mlp.gate.tid2eid"]
        table = checkpoint.read(tensor, 0, tensor.nbytes).view("<i4").reshape(tensor.shape)
        part = checkpoint.read(tensor, 4 * 6 * 7, 4 * 6).view("<i4")
    assert (table.min(), table.max()) == (0, 255)
    assert all(len(set(row)) == 6 for row in table[::1000].tolist())
    np.testing.assert_array_equal(part, table[7])
