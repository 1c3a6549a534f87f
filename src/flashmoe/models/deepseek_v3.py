"""DeepSeek-V3, Kimi-K2, GLM-4.7-Flash: latent attention, sigmoid routing in groups, dense layers
in front. What packing changes is said at `attention_weights`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader, Yarn
from flashmoe.layers.latent_attention import LatentAttention
from flashmoe.layers.rope import RotaryTable, yarn_mscale
from flashmoe.models.decoder import Decoder, DecoderLayer, Mixer, Weights, assemble
from flashmoe.models.sigmoid_moe import add_mlp, build_mlp, dense_layers, expert_groups
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import Source, WeightSpecs
from flashmoe.ops.parts import LatentAttentionWeights

# Per-head maps are stored in whole blocks of rows.
HEAD_ROWS = 8


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass needs; q_lora_rank 0: queries in one step."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    intermediate_size: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    num_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    n_shared_experts: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    rope_interleave: bool
    yarn: Yarn | None
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by: YaRN makes them larger again."""
        scale: float = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        if self.yarn is None or not self.yarn.mscale_all_dim:
            return scale
        return scale * yarn_mscale(self.yarn, self.yarn.mscale_all_dim) ** 2


C = TypeVar("C", bound=Config)


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    config = read_fields(reader)
    reader.finish()
    return config


def read_fields(reader: ConfigReader) -> Config:
    """The fields, their names shared with DeepSeek-V3.2."""
    reader.require("hidden_act", "silu", default="silu")
    reader.require("attention_bias", False, default=False)
    reader.require("scoring_func", "sigmoid", default="sigmoid")
    reader.require("topk_method", "noaux_tc", default="noaux_tc")
    reader.require("moe_layer_freq", 1, default=1)
    reader.allow_quantised("fp8")
    config = _read_sizes(reader)
    _require_derived(reader, config)
    return config


def _require_derived(reader: ConfigReader, config: Config) -> None:
    """Keys that say again what follows from others."""
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    heads = config.num_attention_heads
    reader.require("num_key_value_heads", heads, default=heads)
    reader.require("qk_head_dim", nope + rope, default=nope + rope)
    reader.require("head_dim", rope, nope + rope, default=rope)


def _read_sizes(reader: ConfigReader) -> Config:
    layers = reader.integer("num_hidden_layers", high=MAX_LAYERS)
    return Config(
        num_hidden_layers=layers,
        first_k_dense_replace=dense_layers(reader, layers),
        rms_norm_eps=reader.number("rms_norm_eps"),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=False),
        **reader.sizes("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"),
        **_read_attention(reader),
        **_read_experts(reader),
    )


def _read_attention(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the latent attention and its rotation."""
    rope = reader.full_rope(allow_yarn=True)
    return {
        "q_lora_rank": reader.integer("q_lora_rank") if reader.has("q_lora_rank") else 0,
        "kv_lora_rank": reader.multiple("kv_lora_rank", of=HEAD_ROWS),
        "qk_rope_head_dim": reader.even("qk_rope_head_dim"),
        "v_head_dim": reader.multiple("v_head_dim", of=HEAD_ROWS),
        "rope_theta": rope.theta,
        "rope_interleave": reader.flag("rope_interleave", default=True),
        "yarn": rope.yarn,
        **reader.sizes("num_attention_heads", "qk_nope_head_dim"),
    }


def _read_experts(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the routed experts, of their groups and of the shared ones."""
    count = reader.integer("n_routed_experts", "num_local_experts", "num_experts")
    groups, chosen = expert_groups(reader, count)
    return {
        "num_experts": count,
        "num_experts_per_tok": reader.integer("num_experts_per_tok", high=count // groups * chosen),
        "n_group": groups,
        "topk_group": chosen,
        "norm_topk_prob": reader.flag("norm_topk_prob", default=True),
        "routed_scaling_factor": reader.number("routed_scaling_factor"),
        **reader.sizes("n_shared_experts", "moe_intermediate_size"),
    }


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    return latent_weights(config, attention_weights)


def latent_weights(config: C, attention: Callable[[SpecList, int, C], None]) -> WeightSpecs:
    """The weights of a model whose layers have this attention."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden)
        attention(specs, layer, config)
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        add_mlp(specs, layer, config)
    specs.vector("norm", hidden)
    return specs.finish(config.tie_word_embeddings, tuple(_ignored(config)))


def _ignored(config: Config) -> Iterator[str]:
    """Multi-token prediction, stored as one more layer, and rotation tables of old checkpoints."""
    yield f"model.layers.{config.num_hidden_layers}."
    for layer in range(config.num_hidden_layers):
        yield f"model.layers.{layer}.self_attn.rotary_emb."


def attention_weights(specs: SpecList, layer: int, config: Config) -> None:
    """Rows that are rotated stand apart from those that are not, in half-split order; kv_b_proj
    falls into what makes keys, transposed head by head (see layers/latent_attention.py), and what
    makes values."""
    stem = f"layers.{layer}.self_attn"
    hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    queries, width = f"model.{stem}.q_proj.weight", hidden
    if config.q_lora_rank:
        queries, width = f"model.{stem}.q_b_proj.weight", config.q_lora_rank
        specs.matrix(f"{stem}.q_a_proj", width, hidden)
        specs.vector(f"{stem}.q_a_layernorm", width)
    starts, height = range(0, heads * (nope + rope), nope + rope), heads * (nope + rope)
    specs.stack(f"{stem}.q_nope", (Source(queries, nope, at, height) for at in starts), width)
    turned = (s for at in starts for s in _rotated(queries, at + nope, height, config))
    specs.stack(f"{stem}.q_rope", turned, width)
    shared = f"model.{stem}.kv_a_proj_with_mqa.weight"
    specs.stack(f"{stem}.kv_latent", (Source(shared, rank, 0, rank + rope),), hidden)
    specs.stack(f"{stem}.k_rope", _rotated(shared, rank, rank + rope, config), hidden)
    specs.vector(f"{stem}.kv_a_layernorm", rank)
    both, height = f"model.{stem}.kv_b_proj.weight", heads * (nope + value)
    starts = range(0, height, nope + value)
    keys = (Source(both, rank, at, height, transposed=True) for at in starts)
    specs.stack(f"{stem}.k_up", keys, nope)
    values = (Source(both, value, at + nope, height) for at in starts)
    specs.stack(f"{stem}.v_up", values, rank)
    specs.matrix(f"{stem}.o_proj", hidden, heads * value)


def _rotated(name: str, first: int, height: int, config: Config) -> tuple[Source, ...]:
    """Rows that RoPE turns: interleaved pairs (2 i, 2 i + 1) become (i, i + half), which turns
    queries and keys alike and leaves their products as they were."""
    rope = config.qk_rope_head_dim
    if not config.rope_interleave:
        return (Source(name, rope, first, height),)
    return rotated(name, first, height, rope)


def rotated(name: str, first: int, height: int, rope: int) -> tuple[Source, ...]:
    """`rope` rows of pairs (2 i, 2 i + 1) in half-split order."""
    return tuple(Source(name, rope // 2, first + i, height, step=2) for i in range(2))


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""

    def mixer(n: int) -> LatentAttention:
        return LatentAttention(latent_attention(n, config, weights), n)

    return build_latent(config, weights, mixer)


def build_latent(config: Config, weights: Weights, mixer: Callable[[int], Mixer]) -> Decoder:
    """A model of layers with these mixers."""
    layers = tuple(
        DecoderLayer(mixer(n), build_mlp(n, config, weights))
        for n in range(config.num_hidden_layers)
    )
    rope = RotaryTable(config.qk_rope_head_dim, config.rope_theta, config.yarn)
    return assemble(config, weights, layers, rope)


def latent_attention(n: int, config: Config, weights: Weights) -> LatentAttentionWeights:
    """The attention weights of layer n."""
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}.self_attn."
    return LatentAttentionWeights(
        norm=v[f"layers.{n}.input_layernorm"],
        q_a_proj=m.get(p + "q_a_proj"),
        q_a_norm=v.get(p + "q_a_layernorm"),
        q_nope=m[p + "q_nope"],
        q_rope=m[p + "q_rope"],
        kv_latent=m[p + "kv_latent"],
        kv_norm=v[p + "kv_a_layernorm"],
        k_rope=m[p + "k_rope"],
        k_up=m[p + "k_up"],
        v_up=m[p + "v_up"],
        o_proj=m[p + "o_proj"],
        num_heads=config.num_attention_heads,
        scale=config.attention_scale,
        eps=config.rms_norm_eps,
    )


def state_bytes(config: Config, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context: a latent row per token and layer."""
    row = (config.kv_lora_rank + config.qk_rope_head_dim) * kv_itemsize
    return config.num_hidden_layers * context_length * row
