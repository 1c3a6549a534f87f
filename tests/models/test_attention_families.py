"""Families of grouped-query attention without windows: what they read from config.json."""

from __future__ import annotations

from typing import Any

import pytest

from flashmoe.bench.shapes import SHAPES
from flashmoe.errors import ConfigError
from flashmoe.models import gemma4, glm4_moe, minimax_m2, mixtral, olmoe
from flashmoe.models.registry import FAMILIES, ORACLE_TYPES, load_family
from tests.support import oracle
from tests.support.fp8 import QUANTIZED
from tests.support.tiny_families import GLM4_MOE, MINIMAX_M2, MIXTRAL, MORE_CONFIGS, OLMOE

_ALL = [
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"num_key_value_heads": 3}, "a divisor of 4, got 3"),
    ({"num_experts_per_tok": 7}, r"num_experts_per_tok: .*\[1, 6\], got 7"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "got 'linear'"),
    ({"quantization_config": {"quant_method": "exl3"}}, "quant"),
]
_FULL_ROPE = [({"partial_rotary_factor": 0.5}, "partial_rotary_factor")]
_OWN = {
    "mixtral": [*_FULL_ROPE, ({"sliding_window": 4096}, "sliding_window")],
    "olmoe": [
        *_FULL_ROPE,
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"attention_bias": True}, "attention_bias"),
    ],
    "glm4_moe": [
        ({"partial_rotary_factor": 0.1}, "an even number of rotated dimensions"),
        ({"n_group": 4}, "n_group: .*a divisor of 6, got 4"),
        ({"first_k_dense_replace": 3}, r"first_k_dense_replace: .*\[0, 2\], got 3"),
    ],
    "minimax_m2": [
        ({"rotary_dim": 15}, "rotary_dim: .*an even integer"),
        ({"partial_rotary_factor": 1.0}, "rotary_dim: .*32 as in the RoPE parameters, got 16"),
        ({"attn_type_list": [0, 1]}, "attn_type_list"),
        ({"qk_norm_type": "per_head"}, "qk_norm_type"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"shared_intermediate_size": 64}, "shared_intermediate_size"),
        ({"scoring_func": "softmax"}, "scoring_func"),
    ],
}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [(family, *case) for family, own in _OWN.items() for case in _ALL + own],
)
def test_unsupported_values_are_refused(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_family(family).read_config({**MORE_CONFIGS[family], **change})


def test_norms_are_of_whole_projections() -> None:
    for module, raw, dim in ((olmoe, OLMOE, 16), (minimax_m2, MINIMAX_M2, 32)):
        specs = module.weights(module.read_config(raw))
        shapes = {vector.name: vector.shape for vector in specs.vectors}
        assert shapes["layers.1.self_attn.q_norm"] == (4 * dim,)
        assert shapes["layers.1.self_attn.k_norm"] == (2 * dim,)


def test_norm_topk_prob_is_off_where_olmoe_does_not_say() -> None:
    raw = {key: value for key, value in OLMOE.items() if key != "norm_topk_prob"}
    assert olmoe.read_config(raw).norm_topk_prob is False


def test_mixtral_experts_are_found_under_both_spellings() -> None:
    specs = mixtral.weights(mixtral.read_config(MIXTRAL))
    assert (".mlp.", ".block_sparse_moe.") in specs.spellings
    assert specs.experts[0].fused_gate_up == "model.layers.0.mlp.experts.gate_up_proj"


def test_minimax_m2_old_and_new_config_agree() -> None:
    moved = ("rotary_dim", "rope_theta")
    new = {key: value for key, value in MINIMAX_M2.items() if key not in moved}
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    published = {**MINIMAX_M2, "quantization_config": {**QUANTIZED, "fmt": "float8_e4m3fn"}}
    config = minimax_m2.read_config(published)
    assert minimax_m2.read_config({**new, "rope_parameters": rope}) == config
    assert config.rotary_dim == 16


def test_glm4_moe_has_norms_and_biases_only_where_it_says_so() -> None:
    specs = glm4_moe.weights(glm4_moe.read_config(GLM4_MOE))
    names = {vector.name for vector in specs.vectors}
    assert {f"layers.0.self_attn.{part}_proj.bias" for part in "qkv"} < names
    assert "layers.0.self_attn.o_proj.bias" not in names
    assert [experts.layer for experts in specs.experts] == [1, 2]
    assert "model.layers.3." in specs.ignored
    plain = glm4_moe.read_config({**GLM4_MOE, "use_qk_norm": False, "attention_bias": False})
    assert not [v for v in glm4_moe.weights(plain).vectors if "self_attn" in v.name]


def test_every_family_has_an_oracle() -> None:
    """What docs/models.md says is tested is what is tested."""
    assert {FAMILIES[name] for name in oracle.FAMILIES} == {*FAMILIES.values()}
    assert {*oracle.FAMILIES, "qwen3_5_moe_text"} == ORACLE_TYPES


def test_gemma4_layers_differ_in_heads_and_values() -> None:
    raw = SHAPES["gemma-4-26b-a4b"]
    config = gemma4.read_config(dict(raw))
    assert [config.layer_types.count(kind) for kind in (gemma4.SLIDING, gemma4.FULL)] == [25, 5]
    assert config.heads(0) == (256, 8)
    assert config.heads(5) == (512, 2)
    assert config.full_rotated_pairs == 64
    names = {matrix.name for matrix in gemma4.weights(config).matrices}
    assert "layers.4.self_attn.v_proj" in names
    assert "layers.5.self_attn.v_proj" not in names
    by_layer = {str(n): {"head_dim": 512, "num_key_value_heads": 2} for n in range(5, 30, 6)}
    moved = ("global_head_dim", "num_global_key_value_heads")
    new = {key: value for key, value in raw.items() if key not in moved}
    assert gemma4.read_config({**new, "per_layer_config": by_layer}) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_moe_block": False}, "enable_moe_block"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input"),
        ({"attention_k_eq_v": False}, "attention_k_eq_v"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"rope_parameters": {}}, "rope_parameters: sliding_attention"),
        ({"layer_types": ["sliding_attention"] * 30}, "layer_types: .*full_attention last"),
    ],
)
def test_gemma4_refuses_what_it_does_not_compute(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gemma4.read_config({**SHAPES["gemma-4-26b-a4b"], **change})


def test_gemma4_reads_a_multimodal_config() -> None:
    text = SHAPES["gemma-4-26b-a4b"]
    outer = {"model_type": "gemma4", "vision_config": {}, "text_config": text}
    assert gemma4.read_config(outer) == gemma4.read_config(dict(text))
