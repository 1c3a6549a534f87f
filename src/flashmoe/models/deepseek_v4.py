"""DeepSeek-V4: four residual streams, attention to a window and to compressed entries, experts of
the first layers by token."""

from __future__ import annotations

import dataclasses

import numpy as np

from flashmoe.errors import ConfigError
from flashmoe.layers.compressed_attention import (
    CompressedAttention,
    CompressedAttentionWeights,
    EntryIndexerWeights,
)
from flashmoe.layers.compressor import CompressorWeights
from flashmoe.layers.hyper import HeadStreams, StreamWeights
from flashmoe.layers.rope import RotaryTable
from flashmoe.layers.state import cache_positions
from flashmoe.layers.streamed_moe import StreamedMoe, StreamedMoeWeights
from flashmoe.models.decoder import Decoder, DecoderLayer, Weights, assemble
from flashmoe.models.deepseek_v4_config import HASH, HEAVY, SLIDING, SPARSE, Config, read_config
from flashmoe.models.deepseek_v4_names import SPELLINGS
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.base import Ints
from flashmoe.ops.parts import RouterWeights

__all__ = ["Config", "build", "read_config", "state_bytes", "weights"]

# Multi-token prediction.
IGNORED = ("mtp.", "model.mtp.")


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden, inner = SpecList(), config.hidden_size, config.moe_intermediate_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        for part in ("attn_hc", "ffn_hc"):
            rows, width = config.mixing_rows, config.hc_mult * hidden
            _stream_weights(specs, f"{stem}.{part}.", rows, width, scales=3)
        specs.vector(f"{stem}.input_layernorm", hidden)
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        _attention_weights(specs, layer, config)
        specs.matrix(f"{stem}.mlp.gate", config.num_experts, hidden, role="exact")
        if config.mlp_layer_types[layer] == HASH:
            shape = config.vocab_size, config.num_experts_per_tok
            specs.table(f"{stem}.mlp.gate.tid2eid", shape, config.num_experts)
        else:
            bias = f"{stem}.mlp.gate.e_score_correction_bias"
            specs.vector(bias, config.num_experts, suffix="")
        specs.mlp(f"{stem}.mlp.shared_experts", inner, hidden)
        specs.experts(layer, config.num_experts, hidden, inner, activation="swiglu_limited")
    _stream_weights(specs, "hc_head.hc_", config.hc_mult, config.hc_mult * hidden, scales=1)
    specs.vector("norm", hidden)
    return specs.finish(config.tie_word_embeddings, IGNORED, SPELLINGS)


def _stream_weights(specs: SpecList, stem: str, rows: int, width: int, scales: int) -> None:
    """What mixes streams stays float32, as published checkpoints have it."""
    specs.vector(f"{stem}fn", rows, width, suffix="")
    specs.vector(f"{stem}base", rows, suffix="")
    specs.vector(f"{stem}scale", scales, suffix="")


def _attention_weights(specs: SpecList, layer: int, config: Config) -> None:
    """Compressors and what picks entries are exact: published checkpoints have them in bf16."""
    stem, hidden, dim = f"layers.{layer}.self_attn", config.hidden_size, config.head_dim
    low, groups, rank = config.q_lora_rank, config.o_groups, config.o_lora_rank
    heads = config.num_attention_heads
    specs.matrix(f"{stem}.q_a_proj", low, hidden)
    specs.vector(f"{stem}.q_a_norm", low)
    specs.matrix(f"{stem}.q_b_proj", heads * dim, low)
    specs.matrix(f"{stem}.kv_proj", dim, hidden)
    specs.vector(f"{stem}.kv_norm", dim)
    specs.vector(f"{stem}.sinks", heads, suffix="")
    specs.matrix(f"{stem}.o_a_proj", groups * rank, heads * dim // groups)
    specs.matrix(f"{stem}.o_b_proj", hidden, groups * rank)
    ratio, kind = config.ratio(layer), config.layer_types[layer]
    if kind != SLIDING:
        _compressor_weights(specs, f"{stem}.compressor", ratio, dim, hidden, kind == SPARSE)
    if kind == SPARSE:
        index, size = f"{stem}.compressor.indexer", config.index_head_dim
        _compressor_weights(specs, index, ratio, size, hidden, overlap=True)
        specs.matrix(f"{index}.q_b_proj", config.index_n_heads * size, low)
        specs.matrix(f"{index}.scorer.weights_proj", config.index_n_heads, hidden, role="exact")


def _compressor_weights(
    specs: SpecList, stem: str, ratio: int, dim: int, hidden: int, overlap: bool
) -> None:
    width = dim * (2 if overlap else 1)
    specs.matrix(f"{stem}.kv_proj", width, hidden, role="exact")
    specs.matrix(f"{stem}.gate_proj", width, hidden, role="exact")
    specs.vector(f"{stem}.position_bias", ratio, width, suffix="")
    specs.vector(f"{stem}.kv_norm", dim)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights. Raises ConfigError for a table of tokens that
    names experts which do not exist."""
    tables = tuple(
        RotaryTable(config.rotary_dim, rope.theta, rope.yarn)
        for rope in (config.rope, config.compress_rope)
    )
    layers = tuple(
        DecoderLayer(_mixer(n, config, weights, tables[1]), _moe(n, config, weights))
        for n in range(config.num_hidden_layers)
    )
    v, eps = weights.vectors, (config.hc_eps, config.rms_norm_eps)
    head = HeadStreams(v["hc_head.hc_fn"], v["hc_head.hc_base"], v["hc_head.hc_scale"], *eps)
    return assemble(config, weights, layers, tables[0], more_ropes=tables[1:], streams=head)


def _streams(stem: str, config: Config, weights: Weights) -> StreamWeights:
    v = weights.vectors
    return StreamWeights(
        maps=v[f"{stem}.fn"],
        base=v[f"{stem}.base"],
        scale=v[f"{stem}.scale"],
        streams=config.hc_mult,
        iterations=config.hc_sinkhorn_iters,
        eps=config.hc_eps,
        norm_eps=config.rms_norm_eps,
    )


def _mixer(n: int, config: Config, weights: Weights, rope: RotaryTable) -> CompressedAttention:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}.self_attn."
    kind = config.layer_types[n]
    attention = CompressedAttentionWeights(
        streams=_streams(f"layers.{n}.attn_hc", config, weights),
        norm=v[f"layers.{n}.input_layernorm"],
        q_a=m[p + "q_a_proj"],
        q_a_norm=v[p + "q_a_norm"],
        q_b=m[p + "q_b_proj"],
        q_norm=np.ones(config.head_dim, dtype=np.float32),
        kv=m[p + "kv_proj"],
        kv_norm=v[p + "kv_norm"],
        sinks=v[p + "sinks"],
        o_a=m[p + "o_a_proj"],
        o_b=m[p + "o_b_proj"],
        groups=config.o_groups,
        window=config.sliding_window,
        eps=config.rms_norm_eps,
        compressor=None if kind == SLIDING else _compressor(p, config, weights, rope),
        indexer=_indexer(p, config, weights, rope) if kind == SPARSE else None,
    )
    return CompressedAttention(attention, n, 0 if kind == SLIDING else 1)


def _compressor(p: str, config: Config, weights: Weights, rope: RotaryTable) -> CompressorWeights:
    m, v, stem = weights.matrices, weights.vectors, f"{p}compressor."
    return CompressorWeights(
        values=m[stem + "kv_proj"],
        gates=m[stem + "gate_proj"],
        bias=v[stem + "position_bias"],
        norm=v[stem + "kv_norm"],
        eps=config.rms_norm_eps,
        rope=rope,
    )


def _indexer(p: str, config: Config, weights: Weights, rope: RotaryTable) -> EntryIndexerWeights:
    stem = f"{p}compressor.indexer."
    return EntryIndexerWeights(
        compressor=dataclasses.replace(
            _compressor(p, config, weights, rope),
            values=weights.matrices[stem + "kv_proj"],
            gates=weights.matrices[stem + "gate_proj"],
            bias=weights.vectors[stem + "position_bias"],
            norm=weights.vectors[stem + "kv_norm"],
        ),
        q=weights.matrices[stem + "q_b_proj"],
        head_weights=weights.matrices[stem + "scorer.weights_proj"],
        topk=config.index_topk,
    )


def _moe(n: int, config: Config, weights: Weights) -> StreamedMoe:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    router = RouterWeights(
        norm=v[p + "post_attention_layernorm"],
        gate=m[p + "mlp.gate"],
        num_experts_per_tok=config.num_experts_per_tok,
        renormalize=True,
        eps=config.rms_norm_eps,
    )
    moe = StreamedMoeWeights(
        streams=_streams(p + "ffn_hc", config, weights),
        gate_up=m[p + "mlp.shared_experts.gate_up"],
        down=m[p + "mlp.shared_experts.down_proj"],
        table=_table(n, config, weights),
        correction=v.get(p + "mlp.gate.e_score_correction_bias"),
        scale=config.routed_scaling_factor,
    )
    return StreamedMoe(n, router, moe)


def _table(n: int, config: Config, weights: Weights) -> Ints | None:
    """The experts of each token, where they decide."""
    name = f"layers.{n}.mlp.gate.tid2eid"
    values = weights.vectors.get(name)
    if values is None:
        return None
    table = values.astype(np.int32)
    if table.min() < 0 or table.max() >= config.num_experts or (table != values).any():
        expected = f"whole numbers from 0 to {config.num_experts - 1}"
        raise ConfigError("bad expert of a token", where=name, expected=expected)
    return table


def state_bytes(config: Config, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context: windows, entries, and what those under
    way are made of."""
    window = cache_positions(context_length, config.sliding_window) * config.head_dim * kv_itemsize
    total = config.num_hidden_layers * window
    for layer, kind in enumerate(config.layer_types):
        ratio, overlap = config.ratio(layer), kind == SPARSE
        dims = {HEAVY: [config.head_dim], SPARSE: [config.head_dim, config.index_head_dim]}
        for dim in dims.get(kind, []):
            tail = ratio * 2 * dim * (4 if overlap else 1) * 4
            total += context_length // ratio * dim * kv_itemsize + tail
    return total
