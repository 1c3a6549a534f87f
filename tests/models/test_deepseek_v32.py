"""DeepSeek-V3.2 and GLM-5: what they add to DeepSeek-V3's config and weights, and that few keys
make them plain latent attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.errors import ConfigError
from flashmoe.models import deepseek_v3, deepseek_v32
from tests.support import oracle
from tests.support.tiny_deepseek import DEEPSEEK_V3

V32: dict[str, Any] = {
    **DEEPSEEK_V3,
    "model_type": "deepseek_v32",
    "index_topk": 16,
    "index_n_heads": 4,
    "index_head_dim": 32,
}
GLM: dict[str, Any] = {**V32, "model_type": "glm_moe_dsa"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index_topk": None}, "index_topk: key is missing"),
        ({"index_head_dim": 8}, "index_head_dim: .*at least 16, got 8"),
        ({"q_lora_rank": None}, "q_lora_rank"),
        ({"indexer_types": ["shared", "full", "full"]}, "indexer_types: .*full first"),
        ({"index_topk_pattern": "FSX"}, "index_topk_pattern: .*3 letters out of FS"),
        ({"index_topk_pattern": "FS"}, "index_topk_pattern: .*3 letters out of FS"),
        ({"index_topk_pattern": ["full"]}, "index_topk_pattern: .*a list of 3"),
        ({"index_topk_pattern": "SFF"}, "indexer_types: .*full first"),
        ({"scoring_func": "softmax"}, "scoring_func"),
    ],
)
def test_unsupported_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepseek_v32.read_config({**V32, **change})


def test_layers_without_an_indexer_follow_the_last_one() -> None:
    every = {"index_topk_freq": 2, "index_skip_topk_offset": 1}
    config = deepseek_v32.read_config({**GLM, **every})
    assert config.indexer_types == ("full", "shared", "full")
    names = [m.name for m in deepseek_v32.weights(config).matrices if "indexer.wk" in m.name]
    assert names == ["layers.0.self_attn.indexer.wk", "layers.2.self_attn.indexer.wk"]
    kept = 3 * (64 + 16) + 2 * 32
    assert deepseek_v32.state_bytes(config, 1000, 2) == 1000 * kept * 2


@pytest.mark.parametrize("pattern", ["FSF", ["full", "shared", "full"]])
def test_a_pattern_says_which_layers_follow(pattern: str | list[str]) -> None:
    """It counts more than a frequency, and less than a list of kinds."""
    every = {"index_topk_freq": 3, "index_topk_pattern": pattern}
    config = deepseek_v32.read_config({**GLM, **every})
    assert config.indexer_types == ("full", "shared", "full")
    kinds = ["full", "full", "shared"]
    config = deepseek_v32.read_config({**GLM, **every, "indexer_types": kinds})
    assert config.indexer_types == tuple(kinds)


def test_interleaved_rows_are_sorted_in_every_head() -> None:
    specs = deepseek_v32.weights(deepseek_v32.read_config(GLM))
    (queries,) = (m for m in specs.matrices if m.name == "layers.0.self_attn.indexer.wq_b")
    rows = [s.first + s.step * i for s in queries.sources for i in range(s.rows)]
    one = np.r_[0:16:2, 1:16:2, 16:32]
    assert rows == [*np.concatenate([32 * head + one for head in range(4)])]


@pytest.mark.oracle
def test_up_to_the_limit_it_is_plain_latent_attention(tmp_path: Path) -> None:
    """The same bits as with a limit that no key is beyond; after it others."""
    tiny = oracle.tiny_model("deepseek_v32")
    source = oracle.save(tiny, tmp_path / "source", fused=False)
    flashmoe.pack(source, tmp_path / "sparse", experts="bf16", dense="bf16")
    tiny.config.index_topk = 1000
    for layer in tiny.model.layers:
        layer.self_attn.indexer.index_topk = 1000
    source = oracle.save(tiny, tmp_path / "wide", fused=False)
    flashmoe.pack(source, tmp_path / "plain", experts="bf16", dense="bf16")
    ids = np.arange(1, 81, dtype=np.int32)
    with flashmoe.load(tmp_path / "sparse") as sparse, flashmoe.load(tmp_path / "plain") as plain:
        got, expected = sparse.logits(ids), plain.logits(ids)
    np.testing.assert_array_equal(got[:40], expected[:40])
    assert (got[40:] != expected[40:]).any()


def test_the_fields_of_deepseek_v3_are_read_alike() -> None:
    config = deepseek_v32.read_config(V32)
    base = deepseek_v3.read_config(DEEPSEEK_V3)
    assert vars(base).items() <= vars(config).items()
