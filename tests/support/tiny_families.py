"""Tiny configs of families whose layers are all alike or dense in front, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.tiny_deepseek import DEEPSEEK_V3, Shapes, deepseek_shapes, mlp_shapes

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "vocab_size": 100,
}
MIXTRAL: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MixtralForCausalLM"],
    "intermediate_size": 96,
    "model_type": "mixtral",
    "sliding_window": None,
}
OLMOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "clip_qkv": None,
    "intermediate_size": 64,
    "model_type": "olmoe",
    "norm_topk_prob": False,
}
GLM4_MOE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 32,
    "intermediate_size": 128,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 64,
    "n_group": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
    "use_qk_norm": True,
}
MINIMAX_M2: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attn_type_list": [1, 1],
    "head_dim": 32,
    "intermediate_size": 64,
    "mlp_intermediate_size": 8192,
    "model_type": "minimax_m2",
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "rotary_dim": 16,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
}
MORE_CONFIGS = {
    "deepseek_v3": DEEPSEEK_V3,
    "mixtral": MIXTRAL,
    "olmoe": OLMOE,
    "glm4_moe": GLM4_MOE,
    "minimax_m2": MINIMAX_M2,
}


def own_shapes(config: Mapping[str, Any], layer: int) -> Shapes:
    """Of a layer's tensors, by name within the layer, under canonical names."""
    kind, hidden = config["model_type"], config["hidden_size"]
    if kind == "deepseek_v3":
        return deepseek_shapes(config, layer)
    shapes: Shapes = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **_attention_shapes(config),
    }
    if layer < config.get("first_k_dense_replace", 0):
        return shapes | mlp_shapes("mlp", hidden, config["intermediate_size"])
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    shapes["mlp.gate.weight"] = (config["num_experts"], hidden)
    if kind == "glm4_moe":
        shapes["mlp.gate.e_score_correction_bias"] = (config["num_experts"],)
        shapes |= mlp_shapes("mlp.shared_experts", hidden, config["n_shared_experts"] * inner)
    if kind == "minimax_m2":
        shapes["mlp.e_score_correction_bias"] = (config["num_experts"],)
    for expert in range(config["num_experts"]):
        shapes |= mlp_shapes(f"mlp.experts.{expert}", hidden, inner)
    return shapes


def _attention_shapes(config: Mapping[str, Any]) -> Shapes:
    hidden, heads, kv_heads = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    dim = config.get("head_dim") or hidden // heads
    rows = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
    shapes: Shapes = {f"self_attn.{part}_proj.weight": (n, hidden) for part, n in rows.items()}
    shapes["self_attn.o_proj.weight"] = (hidden, heads * dim)
    if config.get("attention_bias"):
        shapes |= {f"self_attn.{part}_proj.bias": (n,) for part, n in rows.items()}
    norms = {
        "glm4_moe": (dim, dim),
        "olmoe": (rows["q"], rows["k"]),
        "minimax_m2": (rows["q"], rows["k"]),
    }
    if config["model_type"] in norms:
        for part, n in zip("qk", norms[config["model_type"]], strict=True):
            shapes[f"self_attn.{part}_norm.weight"] = (n,)
    return shapes


def as_published(name: str, model_type: str) -> str:
    """A canonical name as checkpoints of the family have it."""
    if model_type not in ("mixtral", "minimax_m2"):
        return name
    name = name.replace(".mlp.", ".block_sparse_moe.")
    for part, short in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        name = name.replace(f".{part}_proj.", f".{short}.")
    return name
