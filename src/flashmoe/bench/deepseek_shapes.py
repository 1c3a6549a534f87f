"""Shapes of DeepSeek-V4, for flashmoe.bench.shapes."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
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
DEEPSEEK_V4: dict[str, dict[str, Any]] = {
    "deepseek-v4-flash": {
        **_COMMON,
        "hidden_size": 4096,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "q_lora_rank": 1024,
        "o_groups": 8,
        "num_experts": 256,
        "moe_intermediate_size": 2048,
        "index_topk": 512,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4],
    },
    # Its kinds of layers as transformers makes them up; what is not said here as in Flash.
    "deepseek-v4-pro": {
        **_COMMON,
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "o_groups": 16,
        "num_experts": 384,
        "moe_intermediate_size": 3072,
        "index_topk": 1024,
        "compress_ratios": [128, 128, *[128, 4] * 29, 128],
    },
}
