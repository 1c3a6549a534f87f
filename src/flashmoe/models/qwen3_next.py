"""Qwen3-Next: the layers of Qwen3.5, whose linear input projections are stored in two matrices.

Rows of in_proj_qkvz and in_proj_ba are grouped by key head. Packing sorts them, so that from there
on a Qwen3-Next is a Qwen3.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flashmoe.checkpoint.config import ConfigReader
from flashmoe.models.qwen3_5_moe import Config, build, hybrid_weights, read_fields, state_bytes
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import Source, WeightSpecs

__all__ = ["Config", "build", "read_config", "state_bytes", "weights"]


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    reader.require("hidden_act", "silu", default="silu")
    reader.require("attention_bias", False, default=False)
    reader.require("use_sliding_window", False, default=False)
    reader.require("norm_topk_prob", True, default=True)
    reader.require("decoder_sparse_step", 1, default=1)
    reader.require("mlp_only_layers", [], default=[])
    config = read_fields(reader)
    reader.integer("intermediate_size", default=1)  # of dense layers, which were refused above
    reader.finish()
    return config


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored. Norms are 1 + w.

    The multi-token-prediction head ("mtp.") is left out.
    """
    return hybrid_weights(config, _in_projections)


def _in_projections(specs: SpecList, stem: str, config: Config) -> None:
    # Per key head: a query and a key head, then the value (and gate z) heads that use it.
    heads, hidden = config.linear_num_value_heads, config.hidden_size
    per_key = heads // config.linear_num_key_heads
    key, value = config.linear_key_head_dim, per_key * config.linear_value_head_dim
    q, k, v, z = _sorted_rows(f"{stem}.in_proj_qkvz", config, (key, key, value, value))
    specs.stack(f"{stem}.in_proj_qkv", (*q, *k, *v), hidden)
    specs.stack(f"{stem}.in_proj_z", z, hidden)
    b, a = _sorted_rows(f"{stem}.in_proj_ba", config, (per_key, per_key))
    specs.stack(f"{stem}.in_proj_b", b, hidden, role="exact")
    specs.stack(f"{stem}.in_proj_a", a, hidden, role="exact")


def _sorted_rows(name: str, config: Config, parts: tuple[int, ...]) -> Iterator[tuple[Source, ...]]:
    """The rows of each part, from a matrix that holds all parts of one key head, then the next."""
    stride, groups = sum(parts), config.linear_num_key_heads
    first = 0
    for rows in parts:
        starts = range(first, groups * stride, stride)
        yield tuple(Source(f"model.{name}.weight", rows, at, groups * stride) for at in starts)
        first += rows
