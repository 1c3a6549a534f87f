"""A tiny DeepSeek-V3: its config and the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "kv_lora_rank": 64,
    "max_position_embeddings": 256,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.25,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 32,
    "vocab_size": 100,
}


def deepseek_shapes(config: Mapping[str, Any], layer: int) -> Shapes:
    """Of a layer's tensors, by name within the layer."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    shapes: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **_latent_shapes(config, hidden),
    }
    if layer < config["first_k_dense_replace"]:
        return shapes | mlp_shapes("mlp", hidden, config["intermediate_size"])
    shapes["mlp.gate.weight"] = (config["num_experts"], hidden)
    shapes["mlp.gate.e_score_correction_bias"] = (config["num_experts"],)
    shapes |= mlp_shapes("mlp.shared_experts", hidden, config["n_shared_experts"] * inner)
    for expert in range(config["num_experts"]):
        shapes |= mlp_shapes(f"mlp.experts.{expert}", hidden, inner)
    return shapes


def _latent_shapes(config: Mapping[str, Any], hidden: int) -> Shapes:
    heads, low, rank = (
        config[key] for key in ("num_attention_heads", "q_lora_rank", "kv_lora_rank")
    )
    nope, rope, value = (
        config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    shapes = {
        "q_a_proj": (low, hidden),
        "q_a_layernorm": (low,),
        "q_b_proj": (heads * (nope + rope), low),
        "kv_a_proj_with_mqa": (rank + rope, hidden),
        "kv_a_layernorm": (rank,),
        "kv_b_proj": (heads * (nope + value), rank),
        "o_proj": (hidden, heads * value),
    }
    return {f"self_attn.{name}.weight": shape for name, shape in shapes.items()}


def mlp_shapes(stem: str, hidden: int, inner: int) -> Shapes:
    """Of a SwiGLU."""
    return {
        f"{stem}.gate_proj.weight": (inner, hidden),
        f"{stem}.up_proj.weight": (inner, hidden),
        f"{stem}.down_proj.weight": (hidden, inner),
    }
