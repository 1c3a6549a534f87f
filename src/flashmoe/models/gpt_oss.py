"""gpt-oss: sliding windows in every other layer, attention sinks, YaRN, biases, clamped SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader, Yarn
from flashmoe.layers.attention import Attention
from flashmoe.layers.moe import SparseMoe
from flashmoe.layers.rope import RotaryTable
from flashmoe.layers.state import cache_positions
from flashmoe.models.decoder import Decoder, DecoderLayer, Weights, assemble
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.parts import AttentionBiases, AttentionWeights, RouterWeights

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass needs; experts are named as elsewhere."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]
    sliding_window: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    yarn: Yarn | None
    max_position_embeddings: int
    tie_word_embeddings: bool

    def window(self, layer: int) -> int:
        """Tokens that a layer sees; 0: all."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else 0


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed -> Config; a missing or unsupported value is a ConfigError."""
    reader = ConfigReader(raw)
    reader.require("hidden_act", "silu", default="silu")
    reader.require("attention_bias", True, default=True)
    reader.require("swiglu_limit", 7.0, 7, default=7.0)
    reader.require("swiglu_alpha", 1.702, default=1.702)
    reader.allow_quantised("mxfp4")
    config = _read_fields(reader)
    reader.integer("initial_context_length", default=1)  # said again in the RoPE parameters
    reader.finish()
    return config


def _read_fields(reader: ConfigReader) -> Config:
    layers = reader.integer("num_hidden_layers", high=MAX_LAYERS)
    heads = reader.integer("num_attention_heads")
    count = reader.integer("num_local_experts", "num_experts")
    rope = reader.full_rope(allow_yarn=True)
    return Config(
        num_hidden_layers=layers,
        layer_types=_layer_types(reader, layers),
        num_attention_heads=heads,
        num_key_value_heads=reader.divisor("num_key_value_heads", of=heads),
        head_dim=reader.even("head_dim"),
        num_experts=count,
        num_experts_per_tok=reader.integer("num_experts_per_tok", "experts_per_token", high=count),
        moe_intermediate_size=reader.integer("intermediate_size"),
        rms_norm_eps=reader.number("rms_norm_eps"),
        rope_theta=rope.theta,
        yarn=rope.yarn,
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=False),
        **reader.sizes("vocab_size", "hidden_size", "sliding_window", "max_position_embeddings"),
    )


def _layer_types(reader: ConfigReader, layers: int) -> tuple[str, ...]:
    given = reader.choices("layer_types", (SLIDING, FULL), layers)
    return given or tuple(FULL if i % 2 else SLIDING for i in range(layers))


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden)
        specs.attention(layer, config, biases="qkvo")
        specs.vector(f"{stem}.self_attn.sinks", config.num_attention_heads, suffix="")
        specs.vector(f"{stem}.post_attention_layernorm", hidden)
        specs.matrix(f"{stem}.mlp.router", config.num_experts, hidden, role="exact")
        specs.vector(f"{stem}.mlp.router.bias", config.num_experts, suffix="")
        specs.experts(
            layer,
            config.num_experts,
            hidden,
            config.moe_intermediate_size,
            activation="swiglu_clamped",
            paired=True,
            biases=True,
        )
    specs.vector("norm", hidden)
    return specs.finish(tied=config.tie_word_embeddings)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    rope = RotaryTable(config.head_dim, config.rope_theta, config.yarn)
    return assemble(config, weights, layers, rope)


def _layer(n: int, config: Config, weights: Weights) -> DecoderLayer:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    router = RouterWeights(
        norm=v[p + "post_attention_layernorm"],
        gate=m[p + "mlp.router"],
        num_experts_per_tok=config.num_experts_per_tok,
        # A softmax over the chosen logits is that over all, divided by what was chosen.
        renormalize=True,
        eps=config.rms_norm_eps,
        bias=v[p + "mlp.router.bias"],
    )
    return DecoderLayer(Attention(_attention(n, config, weights), n), SparseMoe(n, router))


def _attention(n: int, config: Config, weights: Weights) -> AttentionWeights:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    return AttentionWeights(
        norm=v[p + "input_layernorm"],
        q_proj=m[p + "self_attn.q_proj"],
        k_proj=m[p + "self_attn.k_proj"],
        v_proj=m[p + "self_attn.v_proj"],
        o_proj=m[p + "self_attn.o_proj"],
        q_norm=None,
        k_norm=None,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
        biases=AttentionBiases(*(v[f"{p}self_attn.{part}_proj.bias"] for part in "qkvo")),
        sinks=v[p + "self_attn.sinks"],
        window=config.window(n),
    )


def state_bytes(config: Config, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context; windows are rings of a fixed size."""
    per_position = 2 * config.num_key_value_heads * config.head_dim * kv_itemsize
    layers = range(config.num_hidden_layers)
    return per_position * sum(cache_positions(context_length, config.window(n)) for n in layers)
