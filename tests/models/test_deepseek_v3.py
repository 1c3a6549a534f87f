"""What the DeepSeek-V3 family reads from config.json and which weights it asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flashmoe.errors import ConfigError
from flashmoe.models import deepseek_v3
from tests.support.fp8 import QUANTIZED
from tests.support.tiny_deepseek import DEEPSEEK_V3

UNSUPPORTED = [
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"),
    ({"scoring_func": "softmax"}, "scoring_func"),
    ({"topk_method": "greedy"}, "topk_method"),
    ({"moe_layer_freq": 2}, "moe_layer_freq"),
    ({"num_key_value_heads": 1}, "num_key_value_heads"),
    ({"qk_head_dim": 81}, "qk_head_dim"),
    ({"n_group": 4}, "n_group: .*a divisor of 6, got 4"),
    ({"topk_group": 3}, "topk_group"),
    ({"num_experts_per_tok": 4}, r"num_experts_per_tok: .*\[1, 3\], got 4"),
    ({"first_k_dense_replace": 3}, r"first_k_dense_replace: .*\[0, 2\], got 3"),
    ({"first_k_dense_replace": None}, "first_k_dense_replace: key is missing"),
    ({"kv_lora_rank": 60}, "kv_lora_rank: .*a multiple of 8, got 60"),
    ({"v_head_dim": 20}, "v_head_dim: .*a multiple of 8"),
    ({"qk_rope_head_dim": 15}, "an even integer"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "got 'linear'"),
    ({"quantization_config": {**QUANTIZED, "weight_block_size": [64, 64]}}, "weight_block_size"),
    ({"quantization_config": {**QUANTIZED, "fmt": "e5m2"}}, "fmt"),
    ({"quantization_config": {**QUANTIZED, "quant_method": "exl3"}}, "quant_method"),
]


def test_reads_the_published_config() -> None:
    """The keys of DeepSeek-V3 and Kimi-K2-Instruct, and those of transformers 5."""
    published = {k: v for k, v in DEEPSEEK_V3.items() if k != "num_experts"} | {
        "n_routed_experts": 6,
        "quantization_config": QUANTIZED,
    }
    config = deepseek_v3.read_config(DEEPSEEK_V3)
    assert deepseek_v3.read_config({**published, "model_type": "kimi_k2"}) == config
    moved = ("rope_scaling", "rope_theta")
    rope = {**DEEPSEEK_V3["rope_scaling"], "rope_theta": 10000, "rope_type": "yarn"}
    del rope["type"]
    new = {k: v for k, v in published.items() if k not in moved} | {"rope_parameters": rope}
    new |= {"head_dim": 16, "qk_head_dim": 80, "rope_interleave": True}
    assert deepseek_v3.read_config(new) == config


def test_scales_its_scores_as_published() -> None:
    sizes = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    config = deepseek_v3.read_config({**DEEPSEEK_V3, **sizes})
    assert config.attention_scale == pytest.approx(0.135234, rel=1e-5)
    plain = deepseek_v3.read_config({**DEEPSEEK_V3, **sizes, "rope_scaling": None})
    assert plain.attention_scale == pytest.approx(192**-0.5)


def test_names_and_roles() -> None:
    specs = deepseek_v3.weights(deepseek_v3.read_config(DEEPSEEK_V3))
    shapes = {m.name: (m.rows, m.cols) for m in specs.matrices}
    assert {m.name for m in specs.matrices if m.role == "exact"} == {
        "layers.1.mlp.gate",
        "layers.2.mlp.gate",
    }
    assert shapes["layers.0.mlp.gate_up"] == (256, 64)
    assert shapes["layers.1.mlp.shared_experts.gate_up"] == (256, 64)
    assert shapes["layers.0.self_attn.k_up"] == (4 * 64, 64)
    assert [e.layer for e in specs.experts] == [1, 2]
    assert "model.layers.3." in specs.ignored


def test_sorts_rows_that_are_rotated() -> None:
    """4 heads of 64 and 16 rows; the pairs of the last 16 stand side by side."""
    rows = _rows_of("layers.0.self_attn.q_rope", DEEPSEEK_V3)
    one = np.r_[64:80:2, 65:80:2]
    assert rows == [*np.concatenate([80 * head + one for head in range(4)])]
    assert _rows_of("layers.0.self_attn.k_rope", DEEPSEEK_V3) == [*one]
    plain = _rows_of("layers.0.self_attn.k_rope", {**DEEPSEEK_V3, "rope_interleave": False})
    assert plain == [*range(64, 80)]


def _rows_of(name: str, raw: dict[str, Any]) -> list[int]:
    specs = deepseek_v3.weights(deepseek_v3.read_config(raw))
    (matrix,) = (m for m in specs.matrices if m.name == name)
    return [s.first + s.step * i for s in matrix.sources for i in range(s.rows)]


def test_without_low_rank_queries() -> None:
    raw = {**DEEPSEEK_V3, "q_lora_rank": None}
    specs = deepseek_v3.weights(deepseek_v3.read_config(raw))
    (queries,) = (m for m in specs.matrices if m.name == "layers.0.self_attn.q_nope")
    assert (queries.cols, queries.sources[0].name) == (64, "model.layers.0.self_attn.q_proj.weight")
    assert not any("q_a" in name for name in (*map(str, specs.matrices), *map(str, specs.vectors)))


def test_glm4_moe_lite_says_the_kind_of_each_layer() -> None:
    raw = {k: v for k, v in DEEPSEEK_V3.items() if k != "first_k_dense_replace"}
    raw["model_type"] = "glm4_moe_lite"
    config = deepseek_v3.read_config({**raw, "mlp_layer_types": ["dense", "dense", "sparse"]})
    assert config.first_k_dense_replace == 2
    for kinds in (["sparse", "dense", "sparse"], ["dense"] * 3):
        with pytest.raises(ConfigError, match="dense layers, then sparse ones"):
            deepseek_v3.read_config({**raw, "mlp_layer_types": kinds})


def test_a_latent_row_is_all_that_is_kept_of_a_token() -> None:
    config = deepseek_v3.read_config(DEEPSEEK_V3)
    assert deepseek_v3.state_bytes(config, 1000, 2) == 3 * 1000 * (64 + 16) * 2


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED)
def test_unsupported_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepseek_v3.read_config({**DEEPSEEK_V3, **change})
