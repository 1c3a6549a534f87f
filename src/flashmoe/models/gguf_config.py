"""GGUF metadata to the config.json that the model would have on the hub."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from flashmoe.checkpoint.config import MAX_EXPERTS
from flashmoe.errors import ConfigError

_log = logging.getLogger(__name__)

Config = dict[str, Any]
SOFTMAX, SIGMOID = 1, 2  # expert_gating_func


class Metadata:
    """Typed reads of an architecture's keys: "embedding_length" for "qwen3moe.embedding_length"."""

    def __init__(self, values: Mapping[str, Any], where: object) -> None:
        self._values, self._where = values, where
        self.arch = self._read("general.architecture", str)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; without a default, a missing key is a ConfigError."""
        value: int = self._read(f"{self.arch}.{key}", int, default)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, as short as float32 allows: 1e-6, not 9.99999997e-07."""
        value = self._read(f"{self.arch}.{key}", float, default)
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """A string."""
        value: str = self._read(f"{self.arch}.{key}", str, default)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value: bool = self._read(f"{self.arch}.{key}", bool, default)
        return value

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return f"{self.arch}.{key}" in self._values

    def require(self, key: str, expected: object, default: object) -> None:
        """Refuses every other value."""
        got = self._values.get(f"{self.arch}.{key}", default)
        if type(got) is not type(expected) or got != expected:
            self.fail(key, expected, got)

    def fail(self, key: str, expected: object, got: object) -> None:
        """Raises ConfigError."""
        where = f"{self._where}: {self.arch}.{key}"
        raise ConfigError(
            "unsupported value", where=where, expected=expected, got=reprlib.repr(got)
        )

    def _read(self, key: str, kind: type, default: object = None) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise ConfigError("key is missing", where=f"{self._where}: {key}")
        if type(value) is not kind and not (kind is float and type(value) is int):
            where = f"{self._where}: {key}"
            raise ConfigError(
                "bad value", where=where, expected=kind.__name__, got=reprlib.repr(value)
            )
        return value


def read_config(values: Mapping[str, Any], tensors: Collection[str], where: object) -> Config:
    """The config of a file (its first part) with these metadata and tensor names.

    Raises ConfigError for an architecture or a value that is not supported.
    """
    metadata = Metadata(values, where)
    if metadata.arch not in ARCHITECTURES:
        raise ConfigError(
            "GGUF architecture is not supported",
            where=f"{where}: general.architecture",
            expected=" | ".join(ARCHITECTURES),
            got=reprlib.repr(metadata.arch),
        )
    model_type, special = ARCHITECTURES[metadata.arch]
    experts = metadata.integer("expert_count", 0)
    if not 0 < experts <= MAX_EXPERTS:
        metadata.fail("expert_count", f"a Mixture-of-Experts model of up to {MAX_EXPERTS}", experts)
    config = _common(metadata) | {"model_type": model_type}
    config |= {"tie_word_embeddings": "output.weight" not in tensors}
    return config | special(metadata, tensors)


def _common(metadata: Metadata) -> Config:
    hidden, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    extra = metadata.integer("nextn_predict_layers", 0)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": metadata.integer("block_count") - extra,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": metadata.integer("attention.key_length", hidden // max(heads, 1)),
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "max_position_embeddings": metadata.integer("context_length"),
    }


def _inner(metadata: Metadata) -> int:
    return metadata.integer("expert_feed_forward_length")


def _plain_rope(metadata: Metadata) -> None:
    metadata.require("rope.scaling.type", "none", "none")


def _partial(metadata: Metadata, head_dim: int) -> float:
    # A head of no dimensions is refused with the config.
    return metadata.integer("rope.dimension_count", head_dim) / max(head_dim, 1)


def _yarn(metadata: Metadata, **more: object) -> Config:
    return {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": metadata.number("rope.scaling.factor"),
            "original_max_position_embeddings": metadata.integer(
                "rope.scaling.original_context_length"
            ),
            "beta_fast": metadata.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": metadata.number("rope.scaling.yarn_beta_slow", 1.0),
            **more,
        }
    }


def _qwen3_moe(metadata: Metadata, tensors: Collection[str]) -> Config:
    _plain_rope(metadata)
    return {"moe_intermediate_size": _inner(metadata), "norm_topk_prob": True}


def _mixtral(metadata: Metadata, tensors: Collection[str]) -> Config:
    _plain_rope(metadata)
    return {"intermediate_size": metadata.integer("feed_forward_length")}


def _olmoe(metadata: Metadata, tensors: Collection[str]) -> Config:
    _plain_rope(metadata)
    metadata.require("attention.clamp_kqv", None, None)
    inner = metadata.integer("feed_forward_length", 0) or _inner(metadata)
    return {"intermediate_size": inner, "norm_topk_prob": False}


def _gpt_oss(metadata: Metadata, tensors: Collection[str]) -> Config:
    metadata.require("rope.scaling.type", "yarn", "yarn")
    return {
        "intermediate_size": _inner(metadata),
        "sliding_window": metadata.integer("attention.sliding_window"),
        **_yarn(metadata, truncate=False),
    }


def _glm4_moe(metadata: Metadata, tensors: Collection[str]) -> Config:
    _plain_rope(metadata)
    metadata.require("expert_gating_func", SIGMOID, SIGMOID)
    head_dim = metadata.integer("attention.key_length")
    return {
        **_sigmoid_experts(metadata),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "partial_rotary_factor": _partial(metadata, head_dim),
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": metadata.integer("nextn_predict_layers", 0),
    }


def _sigmoid_experts(metadata: Metadata) -> Config:
    """Keys of GLM-4.5 and DeepSeek-V3."""
    return {
        "intermediate_size": metadata.integer("feed_forward_length"),
        "moe_intermediate_size": _inner(metadata),
        "first_k_dense_replace": metadata.integer("leading_dense_block_count"),
        "n_shared_experts": metadata.integer("expert_shared_count"),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "routed_scaling_factor": metadata.number("expert_weights_scale", 1.0),
    }


def _minimax_m2(metadata: Metadata, tensors: Collection[str]) -> Config:
    _plain_rope(metadata)
    head_dim = metadata.integer("attention.key_length")
    rotary = metadata.integer("rope.dimension_count", head_dim)
    return {"intermediate_size": _inner(metadata), "rotary_dim": rotary}


def _deepseek_v3(metadata: Metadata, tensors: Collection[str]) -> Config:
    metadata.require("expert_gating_func", SIGMOID, SOFTMAX)
    # Files with attn_k_b and attn_v_b describe the latent attention and say these sizes apart.
    rope = metadata.integer("rope.dimension_count")
    keys = metadata.integer("attention.key_length_mla", 0)
    values = metadata.integer("attention.value_length_mla", 0)
    keys = keys or metadata.integer("attention.key_length")
    return {
        **_sigmoid_experts(metadata),
        **_groups(metadata),
        "q_lora_rank": metadata.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": metadata.integer("attention.kv_lora_rank"),
        "qk_nope_head_dim": keys - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": values or metadata.integer("attention.value_length"),
        "head_dim": keys,
        "num_key_value_heads": metadata.integer("attention.head_count"),
        **_deepseek_rope(metadata),
    }


def _groups(metadata: Metadata) -> Config:
    groups = metadata.integer("expert_group_count", 0)
    if not groups:
        _log.warning("the file does not say in which groups experts are chosen: all are one group")
    groups = groups or 1
    return {"n_group": groups, "topk_group": metadata.integer("expert_group_used_count", groups)}


def _deepseek_rope(metadata: Metadata) -> Config:
    if metadata.text("rope.scaling.type", "none") != "yarn":
        _plain_rope(metadata)
        return {}
    # The file has 0.1 mscale_all_dim; published configs have mscale = mscale_all_dim.
    scale = round(metadata.number("rope.scaling.yarn_log_multiplier", 0.1) / 0.1, 6)
    return _yarn(metadata, mscale=scale, mscale_all_dim=scale)


def _qwen_hybrid(metadata: Metadata, tensors: Collection[str]) -> Config:
    _plain_rope(metadata)
    heads = metadata.integer("ssm.time_step_rank")
    head_dim = metadata.integer("attention.key_length")
    return {
        "moe_intermediate_size": _inner(metadata),
        "shared_expert_intermediate_size": metadata.integer("expert_shared_feed_forward_length"),
        "linear_conv_kernel_dim": metadata.integer("ssm.conv_kernel"),
        "linear_key_head_dim": metadata.integer("ssm.state_size"),
        "linear_num_key_heads": metadata.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": metadata.integer("ssm.inner_size") // max(heads, 1),
        "full_attention_interval": metadata.integer("full_attention_interval", 4),
        "partial_rotary_factor": _partial(metadata, head_dim),
    }


ARCHITECTURES: dict[str, tuple[str, Callable[[Metadata, Collection[str]], Config]]] = {
    "qwen3moe": ("qwen3_moe", _qwen3_moe),
    "qwen3next": ("qwen3_next", _qwen_hybrid),
    "qwen35moe": ("qwen3_5_moe_text", _qwen_hybrid),
    "gpt-oss": ("gpt_oss", _gpt_oss),
    "deepseek2": ("deepseek_v3", _deepseek_v3),
    "glm4moe": ("glm4_moe", _glm4_moe),
    "minimax-m2": ("minimax_m2", _minimax_m2),
    "llama": ("mixtral", _mixtral),
    "olmoe": ("olmoe", _olmoe),
}
"""general.architecture -> model_type, and what of the config only that architecture has."""
