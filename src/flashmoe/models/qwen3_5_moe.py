"""Qwen3.5-MoE, text: Gated DeltaNet layers with gated full attention in between; shared expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint.config import MAX_LAYERS, ConfigReader
from flashmoe.layers.attention import Attention
from flashmoe.layers.gated_delta import GatedDelta
from flashmoe.layers.moe import SparseMoe
from flashmoe.layers.rope import RotaryTable
from flashmoe.models.decoder import (
    Decoder,
    DecoderLayer,
    Mixer,
    Weights,
    assemble,
    attention_weights,
    router_weights,
)
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.parts import GatedDeltaWeights, SharedExpertWeights

# What adds the specs of in_proj_{qkv,z,b,a} under a stem: families store them differently.
InProjections = Callable[[SpecList, str, "Config"], None]

LINEAR, FULL = "linear_attention", "full_attention"
# Vision towers and multi-token-prediction heads of multimodal checkpoints.
IGNORED = ("model.visual.", "visual.", "mtp.")


@dataclass(frozen=True)
class Config:
    """The fields of config.json that the forward pass needs, under their Hugging Face names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    norm_topk_prob: bool
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def key_dim(self) -> int:
        """Channels of all key (and query) heads of a linear attention layer."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        """Channels of all value heads of a linear attention layer."""
        return self.linear_num_value_heads * self.linear_value_head_dim


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed, multimodal or text -> Config; unsupported values are a ConfigError."""
    reader = ConfigReader(raw).text_model()
    reader.require("hidden_act", "silu", default="silu")
    reader.require("attention_bias", False, default=False)
    reader.require("attn_output_gate", True, default=True)
    reader.require("norm_topk_prob", True, default=True)
    reader.require("mlp_only_layers", [], default=[])
    config = read_fields(reader)
    reader.finish()
    return config


def read_fields(reader: ConfigReader) -> Config:
    """The fields, their names shared with Qwen3-Next."""
    layers = reader.integer("num_hidden_layers", high=MAX_LAYERS)
    num_experts = reader.integer("num_experts", "num_local_experts", "n_routed_experts")
    return Config(
        num_hidden_layers=layers,
        layer_types=_layer_types(reader, layers),
        num_experts=num_experts,
        num_experts_per_tok=reader.integer("num_experts_per_tok", high=num_experts),
        norm_topk_prob=True,
        rms_norm_eps=reader.number("rms_norm_eps"),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=False),
        **reader.sizes("vocab_size", "hidden_size", "max_position_embeddings"),
        **reader.sizes("moe_intermediate_size", "shared_expert_intermediate_size"),
        **_read_attention(reader),
        **_read_delta_rule(reader),
    )


def _read_attention(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the layers with attention."""
    heads, head_dim = reader.integer("num_attention_heads"), reader.integer("head_dim")
    rope = reader.rope(default_partial=0.25)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": reader.divisor("num_key_value_heads", of=heads),
        "head_dim": head_dim,
        "rope_theta": rope.theta,
        "rotary_dim": reader.rotated(rope, head_dim),
    }


def _read_delta_rule(reader: ConfigReader) -> dict[str, Any]:
    """Fields of the layers with the gated delta rule."""
    heads = reader.integer("linear_num_value_heads")
    return {
        "linear_num_key_heads": reader.divisor("linear_num_key_heads", of=heads),
        "linear_num_value_heads": heads,
        **reader.sizes("linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim"),
    }


def _layer_types(reader: ConfigReader, layers: int) -> tuple[str, ...]:
    given = reader.choices("layer_types", (LINEAR, FULL), layers)
    interval = reader.integer("full_attention_interval", default=4)
    return given or tuple(LINEAR if (i + 1) % interval else FULL for i in range(layers))


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored. Norms are 1 + w."""
    return hybrid_weights(config, _in_projections)


def hybrid_weights(config: Config, in_projections: InProjections) -> WeightSpecs:
    """The weights of a model whose linear layers have these input projections."""
    specs, hidden = SpecList(), config.hidden_size
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer, layer_type in enumerate(config.layer_types):
        stem = f"layers.{layer}"
        specs.vector(f"{stem}.input_layernorm", hidden, offset=1.0)
        if layer_type == LINEAR:
            in_projections(specs, f"{stem}.linear_attn", config)
            _linear_attention(specs, f"{stem}.linear_attn", config)
        else:
            _full_attention(specs, f"{stem}.self_attn", config)
        specs.vector(f"{stem}.post_attention_layernorm", hidden, offset=1.0)
        _moe(specs, f"{stem}.mlp", config)
        specs.experts(layer, config.num_experts, hidden, config.moe_intermediate_size)
    specs.vector("norm", hidden, offset=1.0)
    return specs.finish(config.tie_word_embeddings, IGNORED)


def _full_attention(specs: SpecList, stem: str, config: Config) -> None:
    hidden, head_dim = config.hidden_size, config.head_dim
    q_rows = config.num_attention_heads * head_dim
    kv_rows = config.num_key_value_heads * head_dim
    specs.matrix(f"{stem}.q_proj", 2 * q_rows, hidden)  # per head: query, then output gate
    specs.matrix(f"{stem}.k_proj", kv_rows, hidden)
    specs.matrix(f"{stem}.v_proj", kv_rows, hidden)
    specs.matrix(f"{stem}.o_proj", hidden, q_rows)
    specs.vector(f"{stem}.q_norm", head_dim, offset=1.0)
    specs.vector(f"{stem}.k_norm", head_dim, offset=1.0)


def _in_projections(specs: SpecList, stem: str, config: Config) -> None:
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    specs.matrix(f"{stem}.in_proj_qkv", 2 * config.key_dim + config.value_dim, hidden)
    specs.matrix(f"{stem}.in_proj_z", config.value_dim, hidden)
    specs.matrix(f"{stem}.in_proj_b", heads, hidden, role="exact")
    specs.matrix(f"{stem}.in_proj_a", heads, hidden, role="exact")


def _linear_attention(specs: SpecList, stem: str, config: Config) -> None:
    heads, channels = config.linear_num_value_heads, 2 * config.key_dim + config.value_dim
    specs.matrix(f"{stem}.out_proj", config.hidden_size, config.value_dim)
    specs.vector(f"{stem}.conv1d", channels, config.linear_conv_kernel_dim)
    specs.vector(f"{stem}.A_log", heads, suffix="")
    specs.vector(f"{stem}.dt_bias", heads, suffix="")
    specs.vector(f"{stem}.norm", config.linear_value_head_dim)


def _moe(specs: SpecList, stem: str, config: Config) -> None:
    hidden, shared = config.hidden_size, config.shared_expert_intermediate_size
    specs.matrix(f"{stem}.gate", config.num_experts, hidden, role="exact")
    specs.gate_up(f"{stem}.shared_expert", shared, hidden)
    specs.matrix(f"{stem}.shared_expert.down_proj", hidden, shared)
    specs.matrix(f"{stem}.shared_expert_gate", 1, hidden, role="exact")


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    rope = RotaryTable(config.rotary_dim, config.rope_theta)
    return assemble(config, weights, layers, rope)


def _layer(n: int, config: Config, weights: Weights) -> DecoderLayer:
    mixer: Mixer = (
        GatedDelta(_delta(n, config, weights), n)
        if config.layer_types[n] == LINEAR
        else Attention(
            attention_weights(weights, n, config.head_dim, config.rms_norm_eps, gated=True), n
        )
    )
    return DecoderLayer(mixer, _sparse_moe(n, config, weights))


def _sparse_moe(n: int, config: Config, weights: Weights) -> SparseMoe:
    m, p = weights.matrices, f"layers.{n}."
    router = router_weights(n, config, weights)
    shared = SharedExpertWeights(
        gate_up=m[p + "mlp.shared_expert.gate_up"],
        down=m[p + "mlp.shared_expert.down_proj"],
        gate=m[p + "mlp.shared_expert_gate"],
    )
    return SparseMoe(n, router, shared)


def _delta(n: int, config: Config, weights: Weights) -> GatedDeltaWeights:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    return GatedDeltaWeights(
        input_norm=v[p + "input_layernorm"],
        in_proj_qkv=m[p + "linear_attn.in_proj_qkv"],
        in_proj_z=m[p + "linear_attn.in_proj_z"],
        in_proj_a=m[p + "linear_attn.in_proj_a"],
        in_proj_b=m[p + "linear_attn.in_proj_b"],
        out_proj=m[p + "linear_attn.out_proj"],
        conv1d=v[p + "linear_attn.conv1d"],
        a_log=v[p + "linear_attn.A_log"],
        dt_bias=v[p + "linear_attn.dt_bias"],
        norm=v[p + "linear_attn.norm"],
        num_key_heads=config.linear_num_key_heads,
        eps=config.rms_norm_eps,
    )


def state_bytes(config: Config, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context."""
    full = config.layer_types.count(FULL)
    kv = 2 * config.num_key_value_heads * config.head_dim * kv_itemsize * context_length
    conv = (config.linear_conv_kernel_dim - 1) * (2 * config.key_dim + config.value_dim)
    recurrent = config.value_dim * config.linear_key_head_dim
    return full * kv + (len(config.layer_types) - full) * 4 * (conv + recurrent)
