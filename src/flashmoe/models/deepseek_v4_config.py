"""config.json of DeepSeek-V4, as published and as transformers writes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader, Rope

SLIDING, SPARSE, HEAVY = (
    f"{kind}attention" for kind in ("sliding_", "compressed_sparse_", "heavily_compressed_")
)
HASH, SCORED = "hash_moe", "moe"
# As published configs say the kind of a layer: positions per entry.
RATIOS = {0: SLIDING, 4: SPARSE, 128: HEAVY}


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
    return Config(
        num_hidden_layers=layers,
        layer_types=_layer_types(reader, layers),
        mlp_layer_types=_mlp_types(reader, layers),
        rms_norm_eps=reader.number("rms_norm_eps"),
        **reader.sizes("vocab_size", "hidden_size", "max_position_embeddings"),
        **_read_attention(reader),
        **_read_experts(reader),
        **_read_streams(reader),
    )


def _read_attention(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the heads, of compressed entries and of the indexer that chooses among them."""
    heads, dim = reader.integer("num_attention_heads"), reader.multiple("head_dim", of=8)
    rotary_dim, main, compressed = _rotations(reader, dim)
    index_dim = reader.multiple("index_head_dim", of=8)
    if index_dim < rotary_dim:
        reader.fail("index_head_dim", f"at least {rotary_dim}", index_dim)
    sparse, heavy = _rates(reader)
    return {
        "num_attention_heads": heads,
        "head_dim": dim,
        "rotary_dim": rotary_dim,
        "rope": main,
        "compress_rope": compressed,
        "o_groups": reader.divisor("o_groups", of=heads),
        "o_lora_rank": reader.multiple("o_lora_rank", of=8),
        "sparse_ratio": sparse,
        "heavy_ratio": heavy,
        "index_head_dim": index_dim,
        **reader.sizes("q_lora_rank", "sliding_window", "index_n_heads", "index_topk"),
    }


def _read_experts(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the routed experts."""
    count = reader.integer("n_routed_experts", "num_local_experts", "num_experts")
    return {
        "num_experts": count,
        "num_experts_per_tok": reader.integer("num_experts_per_tok", high=count),
        "moe_intermediate_size": reader.integer("moe_intermediate_size"),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
    }


def _read_streams(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the hyper-connections."""
    return {
        "hc_mult": reader.integer("hc_mult", high=16),
        "hc_sinkhorn_iters": reader.integer("hc_sinkhorn_iters", high=1000),
        "hc_eps": reader.number("hc_eps"),
    }


def _rotations(reader: ConfigReader, head_dim: int) -> tuple[int, Rope, Rope]:
    """Rotated dimensions, the rotation of layers with a window only, and that of the others."""
    share = reader.even("qk_rope_head_dim") / head_dim if reader.has("qk_rope_head_dim") else 1.0
    main, compressed = _ropes(reader, share)
    rotary_dim = reader.rotated(main, head_dim)
    if rotary_dim != round(share * head_dim) and reader.has("qk_rope_head_dim"):
        reader.fail("qk_rope_head_dim", rotary_dim, share * head_dim)
    if reader.rotated(compressed, head_dim) != rotary_dim:
        reader.fail("partial_rotary_factor", "the same in both rotations", compressed)
    if compressed.yarn is not None and compressed.theta <= 1:
        reader.fail("compress_rope_theta", "more than 1", compressed.theta)
    return rotary_dim, main, _unscaled(compressed)


def _ropes(reader: ConfigReader, share: float) -> tuple[Rope, Rope]:
    """`rope_parameters` with main and compress (transformers), or the older `rope_scaling`, which
    is that of the second rotation alone. share: rotated part of a head, where they do not say."""
    nested = reader.section("rope_parameters")
    if nested is None or not nested.has("main"):
        both = reader.rope(default_partial=share, allow_yarn=True)
        theta = reader.number("compress_rope_theta")
        return dataclasses.replace(both, yarn=None), dataclasses.replace(both, theta=theta)
    main = nested.required_section("main").own_rope(share)
    compressed = nested.required_section("compress").own_rope(share, allow_yarn=True)
    nested.finish()
    reader.ignore("rope_theta", "compress_rope_theta", "partial_rotary_factor")
    return main, compressed


def _unscaled(rope: Rope) -> Rope:
    """Published attention scales neither cos nor sin for YaRN."""
    if rope.yarn is None or rope.yarn.attention_factor is not None:
        return rope
    return dataclasses.replace(rope, yarn=dataclasses.replace(rope.yarn, attention_factor=1.0))


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
