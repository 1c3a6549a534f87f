"""MiniMax-M2: partly rotated attention with norms of whole queries and keys; sigmoid routing."""

from __future__ import annotations

from typing import Any

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader, Rope
from flashmoe.models.decoder import Decoder, Weights, kv_state_bytes
from flashmoe.models.grouped_query import (
    GroupedQueryConfig,
    grouped_query_decoder,
    grouped_query_weights,
    read_fields,
)
from flashmoe.models.spec_list import MIXTRAL_SPELLINGS
from flashmoe.models.specs import WeightSpecs

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

Config = GroupedQueryConfig


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
    rope = _rotation(reader)
    config = read_fields(reader, rope, inner="intermediate_size", norm_topk_prob=True)
    reader.ignore(*IGNORED)
    reader.finish()
    return config


def _rotation(reader: ConfigReader) -> Rope:
    """rotary_dim as published, or a share of head_dim."""
    head_dim = reader.even("head_dim")
    given = reader.even("rotary_dim") if reader.has("rotary_dim") else head_dim
    rope = reader.rope(default_partial=given / head_dim)
    rotary_dim = reader.rotated(rope, head_dim)
    if reader.has("rotary_dim") and rotary_dim != given:
        reader.fail("rotary_dim", f"{rotary_dim} as in the RoPE parameters", given)
    return rope


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    return grouped_query_weights(
        config, norms="whole", correction=True, spellings=MIXTRAL_SPELLINGS
    )


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    return grouped_query_decoder(config, weights)


state_bytes = kv_state_bytes
