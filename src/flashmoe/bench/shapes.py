"""Shapes of known models: the config.json of each, as far as it decides sizes.

A new family adds its shapes to SHAPES.
"""

from __future__ import annotations

from typing import Any

from flashmoe.errors import UsageError

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    },
    "qwen3-235b-a22b": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    },
}
_HYBRID = {
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
    },
    "max_position_embeddings": 262144,
    "tie_word_embeddings": False,
}
SHAPES["qwen3-next-80b"] = {
    **_HYBRID,
    "model_type": "qwen3_next",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "linear_num_value_heads": 32,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
_QWEN3_5 = {**_HYBRID, "model_type": "qwen3_5_moe_text", "vocab_size": 248320}
SHAPES["qwen3.5-35b-a3b"] = {
    **_QWEN3_5,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "linear_num_value_heads": 32,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
SHAPES["qwen3.5-397b-a17b"] = {
    **_QWEN3_5,
    "hidden_size": 4096,
    "num_hidden_layers": 60,
    "num_attention_heads": 32,
    "linear_num_value_heads": 64,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 1024,
    "shared_expert_intermediate_size": 1024,
}

_GPT_OSS = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
SHAPES["gpt-oss-20b"] = {**_GPT_OSS, "num_hidden_layers": 24, "num_experts": 32}
SHAPES["gpt-oss-120b"] = {**_GPT_OSS, "num_hidden_layers": 36, "num_experts": 128}

_LATENT = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
_DEEPSEEK = {
    **_LATENT,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_experts_per_tok": 8,
    "rms_norm_eps": 1e-6,
}
_DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
SHAPES["deepseek-v3"] = {
    **_DEEPSEEK,
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "num_attention_heads": 128,
    "first_k_dense_replace": 3,
    "num_experts": 256,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "rope_parameters": {**_DEEPSEEK_YARN, "rope_theta": 1e4, "factor": 40.0},
    "max_position_embeddings": 163840,
}
SHAPES["kimi-k2"] = {
    **_DEEPSEEK,
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "first_k_dense_replace": 1,
    "num_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "rope_parameters": {**_DEEPSEEK_YARN, "rope_theta": 5e4, "factor": 32.0},
    "max_position_embeddings": 131072,
}
SHAPES["glm-4.7-flash"] = {
    **_LATENT,
    "model_type": "glm4_moe_lite",
    "vocab_size": 154880,
    "hidden_size": 2048,
    "num_hidden_layers": 47,
    "first_k_dense_replace": 1,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 20,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 1.8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 202752,
}

_MIXTRAL = {
    "model_type": "mixtral",
    "num_key_value_heads": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
SHAPES["mixtral-8x7b"] = {
    **_MIXTRAL,
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
}
SHAPES["mixtral-8x22b"] = {
    **_MIXTRAL,
    "vocab_size": 32768,
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "max_position_embeddings": 65536,
}
SHAPES["olmoe-1b-7b"] = {
    "model_type": "olmoe",
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_GLM = {
    "model_type": "glm4_moe",
    "vocab_size": 151552,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
SHAPES["glm-4.5-air"] = {
    **_GLM,
    "hidden_size": 4096,
    "num_hidden_layers": 46,
    "first_k_dense_replace": 1,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_experts": 128,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}
# GLM-4.6 and 4.7 have the same sizes.
SHAPES["glm-4.5"] = {
    **_GLM,
    "hidden_size": 5120,
    "num_hidden_layers": 92,
    "first_k_dense_replace": 3,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 160,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
}
SHAPES["minimax-m2"] = {
    "model_type": "minimax_m2",
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "max_position_embeddings": 196608,
    "tie_word_embeddings": False,
}

SHAPES["deepseek-v3.2"] = {
    **SHAPES["deepseek-v3"],
    "model_type": "deepseek_v32",
    "index_topk": 2048,
    "index_n_heads": 64,
    "index_head_dim": 128,
}
SHAPES["glm-5"] = {
    **_LATENT,
    "model_type": "glm_moe_dsa",
    "vocab_size": 154880,
    "hidden_size": 6144,
    "num_hidden_layers": 78,
    "first_k_dense_replace": 3,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 64,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "index_topk": 2048,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "max_position_embeddings": 202752,
}
SHAPES["gemma-4-26b-a4b"] = {
    "model_type": "gemma4_text",
    "vocab_size": 262144,
    "hidden_size": 2816,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "num_global_key_value_heads": 2,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "intermediate_size": 2112,
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
        },
    },
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
}

_V4 = {
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "o_lora_rank": 1024,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "num_hash_layers": 3,
    "sliding_window": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "swiglu_limit": 10.0,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 1.5,
    "rope_theta": 1e4,
    "compress_rope_theta": 1.6e5,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 65536,
    },
    "max_position_embeddings": 1048576,
    "tie_word_embeddings": False,
}
SHAPES["deepseek-v4-flash"] = {
    **_V4,
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "num_experts": 256,
    "moe_intermediate_size": 2048,
    "index_topk": 512,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4],
}
# Its kinds of layers as transformers makes them up; what is not said here as in Flash.
SHAPES["deepseek-v4-pro"] = {
    **_V4,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "num_experts": 384,
    "moe_intermediate_size": 3072,
    "index_topk": 1024,
    "compress_ratios": [128, 128, *[128, 4] * 29, 128],
}


def shape_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """config.json of a named model, with fewer layers if asked."""
    if name not in SHAPES:
        raise UsageError("unknown shape", where="SHAPE", expected=" | ".join(SHAPES), got=name)
    config = dict(SHAPES[name])
    if layers is not None:
        # Layers in front may have no experts: then one more is the least that is of use.
        least = config.get("first_k_dense_replace", 0) + 1
        if not least <= layers <= config["num_hidden_layers"]:
            limit = f"{least} to {config['num_hidden_layers']}"
            raise UsageError("bad number of layers", where="--layers", expected=limit, got=layers)
        config["num_hidden_layers"] = layers
    return config
