"""GLM-4.5, 4.6 and 4.7: partly rotated attention with biases and, in some, per-head norms; sigmoid
routing beside a shared expert, dense layers in front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint.config import ConfigReader
from flashmoe.layers.attention import Attention
from flashmoe.layers.rope import RotaryTable
from flashmoe.models.decoder import (
    Decoder,
    DecoderLayer,
    Weights,
    assemble,
    attention_weights,
    kv_state_bytes,
)
from flashmoe.models.grouped_query import GroupedQueryConfig, read_fields
from flashmoe.models.sigmoid_moe import add_mlp, build_mlp, dense_layers, expert_groups
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import WeightSpecs


@dataclass(frozen=True, kw_only=True)
class Config(GroupedQueryConfig):
    """The fields of config.json that the forward pass needs; experts are named as elsewhere."""

    first_k_dense_replace: int
    intermediate_size: int
    attention_bias: bool
    use_qk_norm: bool
    n_group: int
    topk_group: int
    n_shared_experts: int
    routed_scaling_factor: float


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    reader.require("hidden_act", "silu", default="silu")
    config = _read_fields(reader)
    reader.finish()
    return config


def _read_fields(reader: ConfigReader) -> Config:
    rope, normed = reader.rope(default_partial=0.5), reader.flag("norm_topk_prob", default=True)
    base = read_fields(reader, rope, inner="moe_intermediate_size", norm_topk_prob=normed)
    groups, chosen = expert_groups(reader, base.num_experts)
    reader.integer("num_experts_per_tok", high=base.num_experts // groups * chosen)
    return Config(
        **vars(base),
        first_k_dense_replace=dense_layers(reader, base.num_hidden_layers),
        intermediate_size=reader.integer("intermediate_size"),
        attention_bias=reader.flag("attention_bias", default=False),
        use_qk_norm=reader.flag("use_qk_norm", default=False),
        n_group=groups,
        topk_group=chosen,
        n_shared_experts=reader.integer("n_shared_experts"),
        routed_scaling_factor=reader.number("routed_scaling_factor"),
    )


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden)
        specs.attention(layer, config, biases="qkv" if config.attention_bias else "")
        if config.use_qk_norm:
            specs.vector(f"{stem}.self_attn.q_norm", config.head_dim)
            specs.vector(f"{stem}.self_attn.k_norm", config.head_dim)
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        add_mlp(specs, layer, config)
    specs.vector("norm", hidden)
    # Multi-token prediction is stored as one more layer.
    ignored = (f"model.layers.{config.num_hidden_layers}.",)
    return specs.finish(config.tie_word_embeddings, ignored)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    return assemble(config, weights, layers, RotaryTable(config.rotary_dim, config.rope_theta))


def _layer(n: int, config: Config, weights: Weights) -> DecoderLayer:
    attention = attention_weights(weights, n, config.head_dim, config.rms_norm_eps)
    return DecoderLayer(Attention(attention, n), build_mlp(n, config, weights))


state_bytes = kv_state_bytes
