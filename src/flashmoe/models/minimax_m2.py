"""MiniMax-M2: partly rotated attention with norms of whole queries and keys; sigmoid routing."""

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
from flashmoe.ops.parts import SigmoidRouting

# In attn_type_list, which MiniMax models with linear attention have as well.
FULL = 1
# Of linear attention, of multi-token prediction, and of a dense part that this model does not have.
IGNORED = (
    "layernorm_full_attention_beta",
    "layernorm_linear_attention_beta",
    "layernorm_mlp_beta",
    "mlp_intermediate_size",
    "mtp_transformer_layers",
    "num_mtp_modules",
    "shared_moe_mode",
    "use_mtp",
)


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
    rotary_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    norm_topk_prob: bool = True


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    reader.require("hidden_act", "silu", default="silu")
    reader.require("scoring_func", "sigmoid", default="sigmoid")
    reader.require("use_routing_bias", True, default=True)
    reader.require("use_qk_norm", True, default=True)
    reader.require("qk_norm_type", "per_layer", default="per_layer")
    reader.require("shared_intermediate_size", 0, default=0)
    reader.allow_quantised("fp8")
    layers = reader.integer("num_hidden_layers", high=MAX_LAYERS)
    reader.require("attn_type_list", [FULL] * layers, default=[FULL] * layers)
    config = _read_fields(reader, layers)
    reader.ignore(*IGNORED)
    reader.finish()
    return config


def _read_fields(reader: ConfigReader, layers: int) -> Config:
    heads, head_dim = reader.integer("num_attention_heads"), reader.even("head_dim")
    num_experts = reader.integer("num_local_experts", "num_experts")
    theta, rotary_dim = _rotation(reader, head_dim)
    return Config(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=reader.divisor("num_key_value_heads", of=heads),
        head_dim=head_dim,
        num_experts=num_experts,
        num_experts_per_tok=reader.integer("num_experts_per_tok", high=num_experts),
        moe_intermediate_size=reader.integer("intermediate_size"),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope_theta=theta,
        rotary_dim=rotary_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=False),
    )


def _rotation(reader: ConfigReader, head_dim: int) -> tuple[float, int]:
    """Base and rotated dimensions: rotary_dim as published, or a share of head_dim."""
    given = reader.even("rotary_dim") if reader.has("rotary_dim") else head_dim
    rope = reader.rope(default_partial=given / head_dim)
    rotary_dim = reader.rotated(rope, head_dim)
    if reader.has("rotary_dim") and rotary_dim != given:
        reader.fail("rotary_dim", f"{rotary_dim} as in the RoPE parameters", given)
    return rope.theta, rotary_dim


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden)
        specs.attention(layer, config)
        specs.vector(f"{stem}.self_attn.q_norm", config.num_attention_heads * config.head_dim)
        specs.vector(f"{stem}.self_attn.k_norm", config.num_key_value_heads * config.head_dim)
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        specs.matrix(f"{stem}.mlp.gate", config.num_experts, hidden, role="exact")
        specs.vector(f"{stem}.mlp.e_score_correction_bias", config.num_experts, suffix="")
        specs.experts(layer, config.num_experts, hidden, config.moe_intermediate_size)
    specs.vector("norm", hidden)
    return specs.finish(tied=config.tie_word_embeddings, spellings=MIXTRAL_SPELLINGS)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    return assemble(config, weights, layers, RotaryTable(config.rotary_dim, config.rope_theta))


def _layer(n: int, config: Config, weights: Weights) -> DecoderLayer:
    attention = attention_weights(weights, n, config.head_dim, config.rms_norm_eps)
    correction = weights.vectors[f"layers.{n}.mlp.e_score_correction_bias"]
    sigmoid = SigmoidRouting(correction, groups=1, chosen_groups=1, scale=1.0)
    return DecoderLayer(
        Attention(attention, n), SparseMoe(n, router_weights(n, config, weights, sigmoid))
    )


state_bytes = kv_state_bytes
