"""Mixtral 8x7B and 8x22B: grouped-query attention; softmax over the two best of eight experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader
from flashmoe.layers.attention import Attention
from flashmoe.layers.moe import SparseMoe
from flashmoe.layers.rope import RotaryTable
from flashmoe.models.decoder import (
    Decoder,
    DecoderLayer,
    Weights,
    assemble,
    attention_weights,
    kv_state_bytes,
    router_weights,
)
from flashmoe.models.spec_list import MIXTRAL_SPELLINGS, SpecList
from flashmoe.models.specs import WeightSpecs


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass needs; experts are named as elsewhere."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    norm_topk_prob: bool = True


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    reader.require("hidden_act", "silu", default="silu")
    reader.require("sliding_window", None, default=None)
    rope = reader.full_rope()
    hidden_size, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    num_experts = reader.integer("num_local_experts", "num_experts")
    config = Config(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        num_hidden_layers=reader.integer("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=reader.divisor("num_key_value_heads", of=heads),
        head_dim=reader.even("head_dim", default=hidden_size // heads),
        num_experts=num_experts,
        num_experts_per_tok=reader.integer("num_experts_per_tok", high=num_experts),
        moe_intermediate_size=reader.integer("intermediate_size"),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope_theta=rope.theta,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=False),
    )
    reader.finish()
    return config


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden)
        specs.attention(layer, config)
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        specs.matrix(f"{stem}.mlp.gate", config.num_experts, hidden, role="exact")
        specs.experts(layer, config.num_experts, hidden, config.moe_intermediate_size)
    specs.vector("norm", hidden)
    return specs.finish(tied=config.tie_word_embeddings, spellings=MIXTRAL_SPELLINGS)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    return assemble(config, weights, layers, RotaryTable(config.head_dim, config.rope_theta))


def _layer(n: int, config: Config, weights: Weights) -> DecoderLayer:
    attention = attention_weights(weights, n, config.head_dim, config.rms_norm_eps)
    return DecoderLayer(Attention(attention, n), SparseMoe(n, router_weights(n, config, weights)))


state_bytes = kv_state_bytes
