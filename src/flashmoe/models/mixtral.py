"""Mixtral 8x7B and 8x22B: grouped-query attention; softmax over the two best of eight experts."""

from __future__ import annotations

from typing import Any

from flashmoe.checkpoint.config import ConfigReader
from flashmoe.models.decoder import Decoder, Weights, kv_state_bytes
from flashmoe.models.grouped_query import (
    GroupedQueryConfig,
    grouped_query_decoder,
    grouped_query_weights,
    read_fields,
)
from flashmoe.models.spec_list import MIXTRAL_SPELLINGS
from flashmoe.models.specs import WeightSpecs

Config = GroupedQueryConfig


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    reader.require("hidden_act", "silu", default="silu")
    reader.require("sliding_window", None, default=None)
    rope = reader.full_rope()
    config = read_fields(reader, rope, inner="intermediate_size", norm_topk_prob=True)
    reader.finish()
    return config


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    return grouped_query_weights(config, norms="none", spellings=MIXTRAL_SPELLINGS)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    return grouped_query_decoder(config, weights)


state_bytes = kv_state_bytes
