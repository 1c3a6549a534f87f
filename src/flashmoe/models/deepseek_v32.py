"""DeepSeek-V3.2, GLM-5: DeepSeek-V3 with sparse attention beyond index_topk keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.checkpoint.config import ConfigReader
from flashmoe.layers.indexed_attention import IndexedLatentAttention, IndexerWeights
from flashmoe.models import deepseek_v3
from flashmoe.models.decoder import Decoder, Weights
from flashmoe.models.deepseek_v3 import attention_weights, build_latent, latent_weights, rotated
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import Source, WeightSpecs

FULL, SHARED = "full", "shared"


@dataclass(frozen=True)
class Config(deepseek_v3.Config):
    """Of DeepSeek-V3, and the indexer's fields.

    indexer_types: whether a layer has an indexer or follows the last one that has.
    index_interleave: RoPE turns pairs (2 i, 2 i + 1) of the indexer's heads (GLM), not
    (i, i + half).
    """

    index_topk: int
    index_n_heads: int
    index_head_dim: int
    index_interleave: bool
    indexer_types: tuple[str, ...]


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    base = deepseek_v3.read_fields(reader)
    if not base.q_lora_rank:
        reader.fail("q_lora_rank", "the rank that the indexer's queries are made of", None)
    reader.choices("layer_types", ("indexed_attention",), base.num_hidden_layers)
    reader.require("mlp_bias", False, default=False)
    head_dim = reader.multiple("index_head_dim", of=8)
    if head_dim < base.qk_rope_head_dim:
        reader.fail("index_head_dim", f"at least {base.qk_rope_head_dim}", head_dim)
    config = Config(
        **vars(base),
        index_topk=reader.integer("index_topk"),
        index_n_heads=reader.integer("index_n_heads"),
        index_head_dim=head_dim,
        index_interleave=raw.get("model_type") == "glm_moe_dsa",
        indexer_types=_indexer_types(reader, base.num_hidden_layers),
    )
    reader.finish()
    return config


def _indexer_types(reader: ConfigReader, layers: int) -> tuple[str, ...]:
    """The kind of each layer: a list, a pattern of one letter each ("FSSF"), or every
    `index_topk_freq`th from an offset on; the first of them that is there."""
    every = reader.integer("index_topk_freq", default=1)
    offset = reader.integer("index_skip_topk_offset", default=2, low=0)
    pattern = reader.letters("index_topk_pattern", {"F": FULL, "S": SHARED}, layers)
    types = reader.choices("indexer_types", (FULL, SHARED), layers) or pattern
    if types is None:
        skips = (max(n - offset + 1, 0) % every for n in range(layers))
        types = tuple(SHARED if skip else FULL for skip in skips)
    if types[0] != FULL:
        reader.fail("indexer_types", f"{FULL} first", types[0])
    return types


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    return latent_weights(config, _attention_weights)


def _attention_weights(specs: SpecList, layer: int, config: Config) -> None:
    attention_weights(specs, layer, config)
    if config.indexer_types[layer] == FULL:
        _indexer_weights(specs, f"layers.{layer}.self_attn.indexer", config)


def _indexer_weights(specs: SpecList, stem: str, config: Config) -> None:
    """Rows in half-split order: those of published interleaved ones are sorted."""
    heads, dim = config.index_n_heads, config.index_head_dim
    starts, names = range(0, heads * dim, dim), [f"model.{stem}.{n}.weight" for n in ("wq_b", "wk")]
    queries = (s for at in starts for s in _head(names[0], at, heads * dim, config))
    specs.stack(f"{stem}.wq_b", queries, config.q_lora_rank)
    specs.stack(f"{stem}.wk", _head(names[1], 0, dim, config), config.hidden_size)
    specs.matrix(f"{stem}.weights_proj", heads, config.hidden_size, role="exact")
    specs.vector(f"{stem}.k_norm", dim)
    specs.vector(f"{stem}.k_norm.bias", dim, suffix="")


def _head(name: str, first: int, height: int, config: Config) -> tuple[Source, ...]:
    """The rows of one head of the indexer."""
    dim, rope = config.index_head_dim, config.qk_rope_head_dim
    if not config.index_interleave:
        return (Source(name, dim, first, height),)
    turned = rotated(name, first, height, rope)
    return turned if dim == rope else (*turned, Source(name, dim - rope, first + rope, height))


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""

    def mixer(n: int) -> IndexedLatentAttention:
        attention = deepseek_v3.latent_attention(n, config, weights)
        return IndexedLatentAttention(attention, _indexer(n, config, weights), config.index_topk, n)

    return build_latent(config, weights, mixer)


def _indexer(n: int, config: Config, weights: Weights) -> IndexerWeights | None:
    if config.indexer_types[n] == SHARED:
        return None
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}.self_attn.indexer."
    order = np.arange(config.index_head_dim)
    if config.index_interleave:  # as the rows of wk were sorted
        rope = config.qk_rope_head_dim
        order[:rope] = np.r_[0:rope:2, 1:rope:2]
    return IndexerWeights(
        q=m[p + "wq_b"],
        k=m[p + "wk"],
        k_norm=v[p + "k_norm"][order],
        k_bias=v[p + "k_norm.bias"][order],
        head_weights=m[p + "weights_proj"],
    )


def state_bytes(config: Config, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context: latent rows, and the indexer's keys."""
    keys = config.indexer_types.count(FULL) * config.index_head_dim
    latent = deepseek_v3.state_bytes(config, context_length, kv_itemsize)
    return latent + context_length * keys * kv_itemsize
