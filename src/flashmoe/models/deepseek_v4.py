"""DeepSeek-V4: four residual streams, attention to a window and to compressed entries, experts of
the first layers by token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader, Rope
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
from flashmoe.models.deepseek_v4_names import SPELLINGS
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import Source, WeightSpecs
from flashmoe.ops.base import Ints
from flashmoe.ops.parts import RouterWeights

SLIDING, SPARSE, HEAVY = (
    f"{kind}attention" for kind in ("sliding_", "compressed_sparse_", "heavily_compressed_")
)
HASH, SCORED = "hash_moe", "moe"
# As published configs say the kind of a layer: positions per entry.
RATIOS = {0: SLIDING, 4: SPARSE, 128: HEAVY}
# Multi-token prediction.
IGNORED = ("mtp.", "model.mtp.")


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass needs.

    layer_types: SLIDING, SPARSE or HEAVY; mlp_layer_types: HASH or SCORED. sparse_ratio,
    heavy_ratio: positions per compressed entry. rotary_dim: of each head, the last ones.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    rotary_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    layer_types: tuple[str, ...]
    mlp_layer_types: tuple[str, ...]
    sliding_window: int
    sparse_ratio: int
    heavy_ratio: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    rope: Rope
    compress_rope: Rope
    max_position_embeddings: int
    tie_word_embeddings: bool = False

    @property
    def mixing_rows(self) -> int:
        """Numbers that mix the streams around a part of a layer."""
        return self.hc_mult * (2 + self.hc_mult)

    def ratio(self, layer: int) -> int:
        """Positions per compressed entry of a layer; 0: it has none."""
        return {SLIDING: 0, SPARSE: self.sparse_ratio, HEAVY: self.heavy_ratio}[
            self.layer_types[layer]
        ]


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    for name, only in (("hidden_act", "silu"), ("scoring_func", "sqrtsoftplus")):
        reader.require(name, only, default=only)
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        reader.require(name, False, default=False)
    reader.require("norm_topk_prob", True, default=True)
    reader.require("num_key_value_heads", 1, default=1)
    reader.require("n_shared_experts", 1, default=1)
    reader.require("swiglu_limit", 10, 10.0, default=10.0)
    reader.require("topk_method", "noaux_tc", default="noaux_tc")
    reader.ignore("expert_dtype")  # shows in the tensors
    reader.allow_quantised("fp8")
    config = _read_fields(reader)
    reader.finish()
    return config


def _read_fields(reader: ConfigReader) -> Config:
    layers = reader.integer("num_hidden_layers", high=MAX_LAYERS)
    heads, dim = reader.integer("num_attention_heads"), reader.multiple("head_dim", of=8)
    num_experts = reader.integer("n_routed_experts", "num_local_experts", "num_experts")
    rotary_dim, main, compressed = _rotations(reader, dim)
    index_dim = reader.multiple("index_head_dim", of=8)
    if index_dim < rotary_dim:
        reader.fail("index_head_dim", f"at least {rotary_dim}", index_dim)
    groups = reader.integer("o_groups")
    if heads % groups:
        reader.fail("o_groups", f"a divisor of {heads}", groups)
    sparse, heavy = _rates(reader)
    return Config(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=dim,
        rotary_dim=rotary_dim,
        q_lora_rank=reader.integer("q_lora_rank"),
        o_groups=groups,
        o_lora_rank=reader.multiple("o_lora_rank", of=8),
        num_experts=num_experts,
        num_experts_per_tok=reader.integer("num_experts_per_tok", high=num_experts),
        moe_intermediate_size=reader.integer("moe_intermediate_size"),
        routed_scaling_factor=reader.number("routed_scaling_factor"),
        layer_types=_layer_types(reader, layers),
        mlp_layer_types=_mlp_types(reader, layers),
        sliding_window=reader.integer("sliding_window"),
        sparse_ratio=sparse,
        heavy_ratio=heavy,
        index_n_heads=reader.integer("index_n_heads"),
        index_head_dim=index_dim,
        index_topk=reader.integer("index_topk"),
        hc_mult=reader.integer("hc_mult", high=16),
        hc_sinkhorn_iters=reader.integer("hc_sinkhorn_iters", high=1000),
        hc_eps=reader.number("hc_eps"),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope=main,
        compress_rope=compressed,
        max_position_embeddings=reader.integer("max_position_embeddings"),
    )


def _rotations(reader: ConfigReader, head_dim: int) -> tuple[int, Rope, Rope]:
    """Rotated dimensions, the rotation of layers with a window only, and that of the others.

    `rope_parameters` with main and compress (transformers), or the older `rope_scaling`, which is
    that of the others alone. Published attention scales neither cos nor sin for YaRN.
    """
    share = reader.even("qk_rope_head_dim") / head_dim if reader.has("qk_rope_head_dim") else 1.0
    nested = reader.section("rope_parameters")
    if nested is not None and nested.has("main"):
        main = nested.required_section("main").own_rope(share)
        compressed = nested.required_section("compress").own_rope(share, allow_yarn=True)
        nested.finish()
        reader.ignore("rope_theta", "compress_rope_theta", "partial_rotary_factor")
    else:
        both = reader.rope(default_partial=share, allow_yarn=True)
        main = dataclasses.replace(both, yarn=None)
        compressed = dataclasses.replace(both, theta=reader.number("compress_rope_theta"))
    yarn = compressed.yarn
    if yarn is not None and yarn.attention_factor is None:
        yarn = dataclasses.replace(yarn, attention_factor=1.0)
    rotary_dim = reader.rotated(main, head_dim)
    if reader.rotated(compressed, head_dim) != rotary_dim:
        reader.fail("partial_rotary_factor", "the same in both rotations", compressed)
    return rotary_dim, main, dataclasses.replace(compressed, yarn=yarn)


def _rates(reader: ConfigReader) -> tuple[int, int]:
    """Positions per entry of SPARSE and HEAVY layers."""
    rates = reader.section("compress_rates")
    if rates is None:
        sparse, heavy = (ratio for ratio in RATIOS if ratio)
        return sparse, heavy
    found = rates.integer(SPARSE, default=4), rates.integer(HEAVY, default=128)
    rates.finish()
    return found


def _layer_types(reader: ConfigReader, layers: int) -> tuple[str, ...]:
    """By name, or (published) by ratio, where prediction layers follow those of the model."""
    ratios = reader.integers("compress_ratios", layers, tuple(RATIOS))
    types = reader.choices("layer_types", (SLIDING, SPARSE, HEAVY), layers)
    if types is None and ratios is None:
        reader.fail("compress_ratios", "the kind of each layer", None)
    named = None if ratios is None else tuple(RATIOS[ratio] for ratio in ratios)
    if types is not None and named is not None and types != named:
        reader.fail("layer_types", f"{named} as compress_ratios says", types)
    return types or named or ()


def _mlp_types(reader: ConfigReader, layers: int) -> tuple[str, ...]:
    types = reader.choices("mlp_layer_types", (HASH, SCORED), layers)
    if types is not None:
        reader.ignore("num_hash_layers")
        return types
    hashed = reader.integer("num_hash_layers", low=0)
    return tuple(HASH if n < hashed else SCORED for n in range(layers))


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden, inner = SpecList(), config.hidden_size, config.moe_intermediate_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        for part in ("attn_hc", "ffn_hc"):
            rows, width = config.mixing_rows, config.hc_mult * hidden
            for name, shape in (("fn", (rows, width)), ("base", (rows,)), ("scale", (3,))):
                specs.vector(f"{stem}.{part}.{name}", *shape, suffix="")
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
    for name, shape in _head_shapes(config).items():
        specs.vector(f"hc_head.{name}", *shape, suffix="")
    specs.vector("norm", hidden)
    return specs.finish(config.tie_word_embeddings, IGNORED, SPELLINGS)


def _head_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    streams = config.hc_mult
    return {
        "hc_fn": (streams, streams * config.hidden_size),
        "hc_base": (streams,),
        "hc_scale": (1,),
    }


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
        index, count, size = (
            f"{stem}.compressor.indexer",
            config.index_n_heads,
            config.index_head_dim,
        )
        _compressor_weights(specs, index, ratio, size, hidden, overlap=True)
        specs.matrix(f"{index}.q_b_proj", count * size, low)
        specs.matrix(f"{index}.scorer.weights_proj", count, hidden, role="exact")


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
        dims = {
            SLIDING: (),
            HEAVY: (config.head_dim,),
            SPARSE: (config.head_dim, config.index_head_dim),
        }
        for dim in dims[kind]:
            tail = ratio * 2 * dim * (4 if overlap else 1) * 4
            total += context_length // ratio * dim * kv_itemsize + tail
    return total
