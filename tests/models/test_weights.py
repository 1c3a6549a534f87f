"""What the families read from config.json and which weights they ask for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import ConfigError, FlashMoeError
from flashmoe.layers.state import cache_positions
from flashmoe.models import gpt_oss, qwen3_5_moe, qwen3_moe, qwen3_next
from flashmoe.models.registry import FAMILIES, family_name, load_family
from tests.support.demo import demo_checkpoint
from tests.support.tiny_checkpoints import (
    CONFIGS,
    GPT_OSS,
    QWEN3_5_MOE,
    QWEN3_MOE,
    QWEN3_NEXT,
    make_tensors,
)


def test_registry_knows_the_aliases() -> None:
    assert family_name({"model_type": "qwen3_5_moe_text"}) == "qwen3_5_moe"
    assert family_name({"model_type": "qwen3_5_moe"}) == "qwen3_5_moe"
    for family in set(FAMILIES.values()):
        assert callable(load_family(family).read_config)


@pytest.mark.parametrize("model_type", ["gpt2", None, 7, ["qwen3_moe"]])
def test_unknown_model_type_lists_what_is_supported(model_type: Any) -> None:
    with pytest.raises(ConfigError, match=r"model_type.*qwen3_moe \| qwen3_next"):
        family_name({"model_type": model_type})


def test_unknown_family() -> None:
    with pytest.raises(ConfigError, match="unknown model family"):
        load_family("os")


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_ask_for_every_tensor_of_a_checkpoint_in_its_shape(family: str, tied: bool) -> None:
    raw = {**CONFIGS[family], "tie_word_embeddings": tied}
    tensors = make_tensors(raw)
    module = load_family(family)
    specs = module.weights(module.read_config(raw))
    asked: dict[str, tuple[int, ...]] = {}
    for m in specs.matrices:
        asked |= {source.name: source.shape(m.cols) for source in m.sources}
    for v in specs.vectors:
        asked[v.source] = v.shape
    for e in specs.experts:
        for i in range(e.num_experts):
            asked[e.gate.format(expert=i)] = (e.intermediate_size, e.hidden_size)
            asked[e.up.format(expert=i)] = (e.intermediate_size, e.hidden_size)
            asked[e.down.format(expert=i)] = (e.hidden_size, e.intermediate_size)
        if e.gate_up_bias:
            asked[e.gate_up_bias] = (e.num_experts, 2 * e.intermediate_size)
            asked[e.down_bias] = (e.num_experts, e.hidden_size)
    assert asked == {
        name: w.shape if ".conv1d." not in name else (w.shape[0], w.shape[2])
        for name, w in tensors.items()
    }
    assert ("lm_head" in {m.name for m in specs.matrices}) is not tied


def test_qwen3_5_moe_names_roles_and_offsets() -> None:
    specs = qwen3_5_moe.weights(qwen3_5_moe.read_config(QWEN3_5_MOE))
    exact = {m.name for m in specs.matrices if m.role == "exact" and m.name.startswith("layers.0.")}
    assert exact == {
        "layers.0.linear_attn.in_proj_a",
        "layers.0.linear_attn.in_proj_b",
        "layers.0.mlp.gate",
        "layers.0.mlp.shared_expert_gate",
    }
    interleaved = {m.name for m in specs.matrices if m.interleave}
    assert interleaved == {f"layers.{i}.mlp.shared_expert.gate_up" for i in range(4)}
    plain = {v.name for v in specs.vectors if v.offset == 0}
    parts = ("conv1d", "A_log", "dt_bias", "norm")
    assert plain == {f"layers.{i}.linear_attn.{part}" for i in range(3) for part in parts}
    assert {v.offset for v in specs.vectors} == {0.0, 1.0}
    assert specs.ignored == (
        "model.visual.",
        "visual.",
        "mtp.",
        "lm_head.",
        "language_model.lm_head.",
    )


def test_qwen3_next_sorts_rows_by_part() -> None:
    """2 key heads of 16, each with 2 of 4 value heads of 16; b and a: one row per value head."""
    specs = qwen3_next.weights(qwen3_next.read_config(QWEN3_NEXT))
    rows = {
        m.name.split(".in_proj_")[1]: [
            r for s in m.sources for r in range(s.first, s.first + s.rows)
        ]
        for m in specs.matrices
        if m.name.startswith("layers.0.linear_attn.in_proj_")
    }
    heads = np.arange(192).reshape(2, 96)
    q, k, v, z = np.split(heads, [16, 32, 64], axis=1)
    assert rows["qkv"] == [*q.flat, *k.flat, *v.flat]
    assert rows["z"] == [*z.flat]
    assert (rows["b"], rows["a"]) == ([0, 1, 4, 5], [2, 3, 6, 7])


def test_qwen3_next_is_qwen3_5_but_for_its_input_projections() -> None:
    config = qwen3_next.read_config(QWEN3_NEXT)
    mine, other = qwen3_next.weights(config), qwen3_5_moe.weights(config)
    assert [(m.name, m.rows, m.cols, m.role) for m in mine.matrices] == [
        (m.name, m.rows, m.cols, m.role) for m in other.matrices
    ]
    assert (mine.vectors, mine.experts) == (other.vectors, other.experts)
    assert "mtp." in mine.ignored


def test_gpt_oss_reads_the_published_config() -> None:
    """The keys of openai/gpt-oss-20b that say something about the forward pass."""
    renamed = {"num_experts", "layer_types"}
    config = gpt_oss.read_config(
        {k: v for k, v in GPT_OSS.items() if k not in renamed}
        | {
            "num_local_experts": 6,
            "experts_per_token": 2,
            "quantization_config": {
                "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
                "quant_method": "mxfp4",
            },
        }
    )
    assert config == gpt_oss.read_config(GPT_OSS)
    assert [config.window(n) for n in range(2)] == [20, 0]
    assert config.yarn is not None
    assert (config.yarn.factor, config.yarn.attention_factor) == (2.0, None)


def test_gpt_oss_names_and_kinds() -> None:
    specs = gpt_oss.weights(gpt_oss.read_config(GPT_OSS))
    assert {m.name for m in specs.matrices if m.role == "exact"} == {
        "layers.0.mlp.router",
        "layers.1.mlp.router",
    }
    experts = specs.experts[1]
    assert (experts.activation, experts.paired) == ("swiglu_clamped", True)
    assert experts.down_bias == "model.layers.1.mlp.experts.down_proj_bias"
    names = {v.name for v in specs.vectors}
    assert {"layers.0.self_attn.sinks", "layers.0.self_attn.o_proj.bias"} <= names


def test_a_window_keeps_a_ring_whatever_the_context() -> None:
    config = gpt_oss.read_config(GPT_OSS)
    per_position = 2 * 2 * 32 * 2
    assert gpt_oss.state_bytes(config, 100_000, 2) == per_position * (100_000 + 576)
    assert (cache_positions(100_000, 128), cache_positions(7, 0)) == (640, 7)


def test_qwen3_moe_names_and_roles() -> None:
    specs = qwen3_moe.weights(qwen3_moe.read_config(QWEN3_MOE))
    assert {m.name for m in specs.matrices if m.role == "exact"} == {
        "layers.0.mlp.gate",
        "layers.1.mlp.gate",
    }
    assert {v.offset for v in specs.vectors} == {0.0}
    assert specs.experts[1].fused_gate_up == "model.layers.1.mlp.experts.gate_up_proj"
    assert specs.ignored == ()


def test_qwen3_moe_old_and_new_config_agree() -> None:
    moved = ("rope_theta", "rope_scaling", "num_experts", "torch_dtype", "use_sliding_window")
    new = {
        **{key: value for key, value in QWEN3_MOE.items() if key not in moved},
        "num_local_experts": 6,
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "mlp_only_layers": None,
    }
    assert qwen3_moe.read_config(new) == qwen3_moe.read_config(QWEN3_MOE)


def test_qwen3_moe_defaults() -> None:
    raw = {k: v for k, v in QWEN3_MOE.items() if k not in ("norm_topk_prob", "head_dim")}
    config = qwen3_moe.read_config(raw)
    assert config.norm_topk_prob is False
    assert config.head_dim == config.rotary_dim == 16


def test_qwen3_5_moe_old_and_new_config_agree() -> None:
    old = {
        **{k: v for k, v in QWEN3_5_MOE.items() if k not in ("rope_parameters", "layer_types")},
        "rope_theta": 1e7,
        "rope_scaling": None,
        "full_attention_interval": 4,
        "attn_output_gate": True,
        "mtp_num_hidden_layers": 1,
        "norm_topk_prob": True,
    }
    config = qwen3_5_moe.read_config(old)
    assert config == qwen3_5_moe.read_config(QWEN3_5_MOE)
    assert config.rotary_dim == 8
    assert config.norm_topk_prob is True


def test_qwen3_5_moe_nested_config() -> None:
    text = {k: v for k, v in QWEN3_5_MOE.items() if k != "tie_word_embeddings"}
    raw = {"model_type": "qwen3_5_moe", "text_config": text, "tie_word_embeddings": True}
    assert qwen3_5_moe.read_config(raw) == qwen3_5_moe.read_config(QWEN3_5_MOE)


_BOTH = [
    ({"hidden_act": "gelu"}, "hidden_act: unsupported value; expected 'silu', got 'gelu'"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_only_layers": [0]}, "mlp_only_layers"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ({"num_key_value_heads": 3}, "a divisor of 4, got 3"),
    ({"num_experts_per_tok": 7}, r"num_experts_per_tok: .*\[1, 6\], got 7"),
    ({"hidden_size": None}, "hidden_size: key is missing"),
]
_QWEN3_MOE = [
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "got 'yarn'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"head_dim": 31}, "an even integer"),
]
_QWEN3_NEXT = [
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ({"norm_topk_prob": False}, "norm_topk_prob"),
    ({"linear_num_key_heads": 3}, "a divisor of 4, got 3"),
]
_YARN = GPT_OSS["rope_scaling"]
_GPT_OSS = [
    *(c for c in _BOTH if not {"attention_bias", "mlp_only_layers", "rope_parameters"} & {*c[0]}),
    ({"rope_parameters": {"rope_type": "default"}}, "rope_scaling: .*the same as rope_parameters"),
    ({"rope_theta": 1.0}, "rope_theta: .*more than 1"),
    ({"attention_bias": False}, "attention_bias"),
    ({"swiglu_limit": 10.0}, "swiglu_limit"),
    ({"swiglu_alpha": 1.0}, "swiglu_alpha"),
    ({"sliding_window": None}, "sliding_window: key is missing"),
    ({"layer_types": ["chunked_attention"] * 2}, "got 'chunked_attention'"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quant_method: .*expected 'mxfp4'"),
    ({"num_local_experts": 7}, "num_local_experts and num_experts"),
    ({"rope_scaling": {**_YARN, "rope_type": "llama3"}}, "rope_type"),
    ({"rope_scaling": {**_YARN, "factor": None}}, "factor: key is missing"),
    ({"rope_scaling": {**_YARN, "beta_fast": 1.0}}, "beta_fast: .*more than beta_slow"),
    ({"rope_scaling": {**_YARN, "mscales": 1.0}}, "mscales: .*keys of YaRN"),
]
_QWEN3_5_MOE = [
    ({"attn_output_gate": False}, "attn_output_gate"),
    ({"norm_topk_prob": False}, "norm_topk_prob"),
    ({"layer_types": ["full_attention"]}, "a list of 4"),
    ({"layer_types": ["sliding_attention"] * 4}, "got 'sliding_attention'"),
    ({"linear_num_key_heads": 3}, "a divisor of 4, got 3"),
    ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.1}}, "an even number"),
]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [("qwen3_moe", *case) for case in _BOTH + _QWEN3_MOE]
    + [("qwen3_next", *case) for case in _BOTH + _QWEN3_NEXT]
    + [("qwen3_5_moe", *case) for case in _BOTH + _QWEN3_5_MOE]
    + [("gpt_oss", *case) for case in _GPT_OSS],
)
def test_unsupported_values_are_refused(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_family(family).read_config({**CONFIGS[family], **change})


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**40)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(0, 3), max_size=3)
    | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "x"]), st.floats(), max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), family=st.sampled_from(sorted(CONFIGS)))
def test_mutated_configs_raise_typed_errors_only(data: st.DataObject, family: str) -> None:
    raw = dict(CONFIGS[family])
    for key in data.draw(st.lists(st.sampled_from(sorted(raw)), min_size=1, max_size=3)):
        raw[key] = data.draw(_VALUES)
    module = load_family(family)
    try:
        module.weights(module.read_config(raw))
    except FlashMoeError:
        return


@pytest.mark.checkpoint
def test_demo_checkpoint() -> None:
    raw = json.loads((demo_checkpoint() / "config.json").read_text())
    config = qwen3_5_moe.read_config(raw)
    assert (config.num_experts, config.rotary_dim, config.tie_word_embeddings) == (64, 16, True)
