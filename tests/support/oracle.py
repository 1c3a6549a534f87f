"""Tiny random models made, saved and run by transformers: the oracle of the family tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.tolerances import LOGITS_ORACLE

_COMMON = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
_HYBRID = {
    **_COMMON,
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
}
_LATENT = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
_DEEPSEEK = {
    **_LATENT,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 163840,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}
# Limits within the tests' prompts: with few heads many scores would tie, at 0.
_INDEXER = {"index_topk": 40, "index_head_dim": 64, "index_n_heads": 32}
_TINY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            **_COMMON,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "norm_topk_prob": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            **_HYBRID,
            "intermediate_size": 256,
            "norm_topk_prob": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **{
                k: v
                for k, v in _COMMON.items()
                if k not in ("moe_intermediate_size", "num_experts")
            },
            "intermediate_size": 64,
            "num_local_experts": 8,
            "num_hidden_layers": 4,
            "sliding_window": 24,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", _DEEPSEEK),
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig",
        "Glm4MoeLiteForCausalLM",
        {
            **_LATENT,
            "v_head_dim": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "deepseek_v32": (
        "DeepseekV32Config",
        "DeepseekV32ForCausalLM",
        {
            **_LATENT,
            **_INDEXER,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        "GlmMoeDsaForCausalLM",
        {
            **_LATENT,
            **_INDEXER,
            "v_head_dim": 64,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "indexer_types": ["full", "full", "shared", "full"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "olmoe": (
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 256,
            "moe_intermediate_size": 64,
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "attention_bias": True,
            "use_qk_norm": True,
            "num_nextn_predict_layers": 0,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "minimax_m2": (
        "MiniMaxM2Config",
        "MiniMaxM2ForCausalLM",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "gemma4_text": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "global_head_dim": 64,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
            "sliding_window": 24,
            "final_logit_softcapping": 30.0,
        },
    ),
    "deepseek_v4": (
        "DeepseekV4Config",
        "DeepseekV4ForCausalLM",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "head_dim": 64,
            "q_lora_rank": 64,
            "o_groups": 2,
            "o_lora_rank": 64,
            "moe_intermediate_size": 64,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 5,
            "partial_rotary_factor": 0.25,
            "sliding_window": 24,
            # Limits within the tests' prompts, as above.
            "index_n_heads": 32,
            "index_head_dim": 64,
            "index_topk": 12,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "compress_rates": {
                "compressed_sparse_attention": 4,
                "heavily_compressed_attention": 32,
            },
            "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"],
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 16,
                "beta_fast": 32,
                "beta_slow": 1,
                "original_max_position_embeddings": 65536,
            },
        },
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        {
            **_HYBRID,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
            },
        },
    ),
}
FAMILIES = tuple(_TINY)


def torch() -> Any:
    """The torch module; skips the test where it is not installed."""
    return pytest.importorskip("torch", reason="the oracle extra is not installed")


def transformers() -> Any:
    """The transformers module; skips the test where it is not installed."""
    pytest.importorskip("torch", reason="the oracle extra is not installed")
    return pytest.importorskip("transformers", reason="the oracle extra is not installed")


def tiny_model(family: str, **overrides: Any) -> Any:
    """A random float32 model whose weights are exact in bf16 and whose norms are not trivial."""
    hf = transformers()
    config_name, model_name, arguments = _TINY[family]
    if "top_k_experts" in arguments and "num_experts_per_tok" in overrides:
        overrides["top_k_experts"] = overrides.pop("num_experts_per_tok")
    config = getattr(hf, config_name)(**{**arguments, **overrides})
    return _random(getattr(hf, model_name), config)


def tiny_multimodal_model() -> Any:
    """A Qwen3.5-MoE with a vision tower, as `tiny_model`."""
    hf = transformers()
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"out_hidden_size": _COMMON["hidden_size"], "num_position_embeddings": 16}
    config = hf.Qwen3_5MoeConfig(text_config=_TINY["qwen3_5_moe"][2], vision_config=vision)
    return _random(hf.Qwen3_5MoeForConditionalGeneration, config)


def _random(model_class: Any, config: Any) -> Any:
    t = torch()
    t.manual_seed(0)
    model = model_class(config).eval().float()
    noisy = (
        *("norm", "bias", "A_log", "sinks", ".scale", "per_expert_scale", "layer_scalar"),
        *("_hc.base", "hc_base", "hc_scale"),
    )
    with t.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name or "embed_scale" in name:
                continue
            if name.endswith("tid2eid"):
                parameter.copy_(_experts_of_tokens(parameter))
                continue
            if any(part in name for part in noisy):
                parameter.add_(t.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.bfloat16().float())
    return model


def _experts_of_tokens(table: Any) -> Any:
    """[vocab, K] experts of 8, each token's different; with a smaller K the first of the same."""
    t = torch()
    tokens, places = t.arange(len(table))[:, None], t.arange(table.shape[1])
    return (tokens * 3 + tokens // 8 + places * 5) % 8


def save(model: Any, path: Path, *, fused: bool) -> Path:
    """Write the model as a bf16 checkpoint, experts fused or one by one."""
    t = torch()
    # A copy: the way to bf16 and back would cost the rotary frequencies their precision.
    copy.deepcopy(model).to(t.bfloat16).save_pretrained(path, save_original_format=not fused)
    return path


def logits(model: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """float32 logits [T, vocab] of the oracle."""
    t = torch()
    with t.no_grad():
        out = model(input_ids=t.from_numpy(ids.astype(np.int64))[None]).logits[0]
    result: NDArray[np.float32] = out.float().numpy()
    return result


def assert_close_and_same_choice(got: np.ndarray, expected: np.ndarray) -> None:
    """Within tolerance, and the same argmax wherever it is not a near tie."""
    assert np.abs(got - expected).max() <= LOGITS_ORACLE
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > LOGITS_ORACLE
    assert clear.any()
    assert (got.argmax(1) == expected.argmax(1))[clear].all()
