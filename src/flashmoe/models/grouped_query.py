"""What families of grouped-query attention with routed experts in every layer have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader, Rope
from flashmoe.layers.attention import Attention
from flashmoe.layers.moe import SparseMoe
from flashmoe.layers.rope import RotaryTable
from flashmoe.models.decoder import (
    Decoder,
    DecoderLayer,
    Weights,
    assemble,
    attention_weights,
    router_weights,
)
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.parts import SigmoidRouting

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class GroupedQueryConfig:
    """The fields of config.json that the forward pass needs, under their Hugging Face names;
    experts are named alike in all families. rotary_dim: how much of a head RoPE turns."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool


def read_fields(
    reader: ConfigReader,
    rope: Rope,
    *,
    inner: str,
    norm_topk_prob: bool,
    per_token: str = "num_experts_per_tok",
    tied: bool = False,
) -> GroupedQueryConfig:
    """The fields. inner, per_token: how the family calls the width of an expert and their number
    per token; tied: what holds where tie_word_embeddings is not said."""
    hidden_size, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    head_dim = reader.even("head_dim", default=hidden_size // heads)
    num_experts = reader.integer(*EXPERTS)
    return GroupedQueryConfig(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        num_hidden_layers=reader.integer("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=reader.divisor("num_key_value_heads", of=heads),
        head_dim=head_dim,
        num_experts=num_experts,
        num_experts_per_tok=reader.integer(per_token, high=num_experts),
        moe_intermediate_size=reader.integer(inner),
        norm_topk_prob=norm_topk_prob,
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope_theta=rope.theta,
        rotary_dim=reader.rotated(rope, head_dim),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=tied),
    )


def grouped_query_weights(
    config: GroupedQueryConfig,
    *,
    norms: Literal["none", "per head", "whole"],
    correction: bool = False,
    spellings: tuple[tuple[str, str], ...] = (),
) -> WeightSpecs:
    """Every weight. norms: of queries and keys. correction: the router has a vector of them."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden)
        specs.attention(layer, config)
        if norms != "none":
            whole = norms == "whole"
            q, k = (config.num_attention_heads, config.num_key_value_heads) if whole else (1, 1)
            specs.vector(f"{stem}.self_attn.q_norm", q * config.head_dim)
            specs.vector(f"{stem}.self_attn.k_norm", k * config.head_dim)
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        specs.matrix(f"{stem}.mlp.gate", config.num_experts, hidden, role="exact")
        if correction:
            specs.vector(f"{stem}.mlp.e_score_correction_bias", config.num_experts, suffix="")
        specs.experts(layer, config.num_experts, hidden, config.moe_intermediate_size)
    specs.vector("norm", hidden)
    return specs.finish(tied=config.tie_word_embeddings, spellings=spellings)


def grouped_query_decoder(config: GroupedQueryConfig, weights: Weights) -> Decoder:
    """The model: what it has shows in its weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    return assemble(config, weights, layers, RotaryTable(config.rotary_dim, config.rope_theta))


def _layer(n: int, config: GroupedQueryConfig, weights: Weights) -> DecoderLayer:
    attention = attention_weights(weights, n, config.head_dim, config.rms_norm_eps)
    correction = weights.vectors.get(f"layers.{n}.mlp.e_score_correction_bias")
    sigmoid = None
    if correction is not None:
        sigmoid = SigmoidRouting(correction, groups=1, chosen_groups=1, scale=1.0)
    router = router_weights(n, config, weights, sigmoid)
    return DecoderLayer(Attention(attention, n), SparseMoe(n, router))
