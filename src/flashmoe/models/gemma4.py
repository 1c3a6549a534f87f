"""Gemma 4 26B-A4B, text: five layers with a window to one that sees all, whose values are its keys;
routed experts beside a dense MLP, norms around both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.checkpoint.config import ConfigReader, Rope
from flashmoe.layers.rope import RotaryTable
from flashmoe.layers.sandwich import (
    SandwichAttention,
    SandwichAttentionWeights,
    SandwichMoe,
    SandwichMoeWeights,
    SandwichNorms,
)
from flashmoe.layers.state import cache_positions
from flashmoe.models.decoder import Decoder, DecoderLayer, Weights, assemble
from flashmoe.models.grouped_query import GroupedQueryConfig, read_fields
from flashmoe.models.spec_list import SpecList
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.parts import RouterWeights

SLIDING, FULL = "sliding_attention", "full_attention"
# As in SandwichNorms.
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm_1",
    "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm_2",
    "post_feedforward_layernorm",
)
# Parts for images and sound.
_MEDIA = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
IGNORED = (*_MEDIA, *(f"model.{part}" for part in _MEDIA))


@dataclass(frozen=True, kw_only=True)
class Config(GroupedQueryConfig):
    """Of layers with a window, and what differs in those that see all.

    full_head_dim, full_key_value_heads: of the layers that see all. full_rotated_pairs: how many
    pairs of a head's dimensions RoPE turns there. final_logit_softcapping 0: none.
    """

    layer_types: tuple[str, ...]
    sliding_window: int
    full_key_value_heads: int
    full_head_dim: int
    full_rotated_pairs: int
    full_rope_theta: float
    intermediate_size: int
    final_logit_softcapping: float

    def heads(self, layer: int) -> tuple[int, int]:
        """head_dim and key-value heads of a layer."""
        if self.layer_types[layer] == FULL:
            return self.full_head_dim, self.full_key_value_heads
        return self.head_dim, self.num_key_value_heads

    def window(self, layer: int) -> int:
        """Tokens that a layer sees; 0: all."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else 0


def read_config(raw: dict[str, Any]) -> Config:
    """config.json as parsed, multimodal or text -> Config; unsupported values are a ConfigError."""
    reader = ConfigReader(raw).text_model()
    reader.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    reader.require("attention_bias", False, default=False)
    reader.require("attention_k_eq_v", True, default=False)
    reader.require("enable_moe_block", True, default=False)
    reader.require("hidden_size_per_layer_input", 0, default=256)
    reader.require("num_kv_shared_layers", 0, default=0)
    reader.require("use_double_wide_mlp", False, default=False)
    # Image tokens may see each other both ways: no matter to text.
    reader.require("use_bidirectional_attention", None, "vision", default=None)
    reader.ignore("vocab_size_per_layer_input")
    config = _read_fields(reader)
    reader.finish()
    return config


def _read_fields(reader: ConfigReader) -> Config:
    theta, full_theta, share = _rotations(reader)
    rope, inner = Rope(theta, 1.0), "moe_intermediate_size"
    base = read_fields(
        reader, rope, inner=inner, norm_topk_prob=True, per_token="top_k_experts", tied=True
    )
    layer_types = _layer_types(reader, base.num_hidden_layers)
    full_dim, full_kv_heads = _full_heads(reader, layer_types, base.num_attention_heads)
    capped = reader.has("final_logit_softcapping")
    return Config(
        **vars(base),
        layer_types=layer_types,
        sliding_window=reader.integer("sliding_window"),
        full_key_value_heads=full_kv_heads,
        full_head_dim=full_dim,
        full_rotated_pairs=int(share * full_dim // 2),
        full_rope_theta=full_theta,
        intermediate_size=reader.integer("intermediate_size"),
        final_logit_softcapping=reader.number("final_logit_softcapping") if capped else 0.0,
    )


def _layer_types(reader: ConfigReader, layers: int) -> tuple[str, ...]:
    given = reader.choices("layer_types", (SLIDING, FULL), layers)
    default = (*(SLIDING if (n + 1) % 6 else FULL for n in range(layers - 1)), FULL)
    types = given or default
    if types[-1] != FULL:
        reader.fail("layer_types", f"{FULL} last", types[-1])
    return types


def _full_heads(reader: ConfigReader, types: tuple[str, ...], heads: int) -> tuple[int, int]:
    """head_dim and key-value heads of full layers: said once, or (transformers 5) of each."""
    sections = [reader]
    names = ("global_head_dim", "num_global_key_value_heads")
    by_layer = reader.section("per_layer_config")
    if by_layer is not None:
        numbers = [str(n) for n, kind in enumerate(types) if kind == FULL]
        sections = [by_layer.required_section(number) for number in numbers]
        names = ("head_dim", "num_key_value_heads")
    found = {(s.even(names[0]), s.divisor(names[1], of=heads)) for s in sections}
    if len(found) > 1:
        reader.fail("per_layer_config", "the same heads in all full layers", sorted(found))
    return found.pop()


def _rotations(reader: ConfigReader) -> tuple[float, float, float]:
    """theta of layers with a window, that of full ones, and the share of pairs that those turn."""
    both = reader.required_section("rope_parameters")
    sliding, full = both.required_section(SLIDING), both.required_section(FULL)
    sliding.require("rope_type", "default")
    full.require("rope_type", "proportional")
    share = full.number("partial_rotary_factor", default=1.0)
    if share > 1:
        full.fail("partial_rotary_factor", "a number in (0, 1]", share)
    return sliding.number("rope_theta"), full.number("rope_theta"), share


def weights(config: Config) -> WeightSpecs:
    """Every weight of the model: where it comes from and how it is stored."""
    specs, hidden, experts = SpecList(), config.hidden_size, config.num_experts
    specs.matrix("embed_tokens", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        stem = f"layers.{layer}"
        for norm in NORMS:
            specs.vector(f"{stem}.{norm}", hidden)
        _attention_weights(specs, layer, config)
        specs.mlp(f"{stem}.mlp", config.intermediate_size, hidden)
        specs.matrix(f"{stem}.router.proj", experts, hidden, role="exact")
        specs.vector(f"{stem}.router.scale", hidden, suffix="")
        specs.vector(f"{stem}.router.per_expert_scale", experts, suffix="")
        specs.vector(f"{stem}.layer_scalar", 1, suffix="")
        inner = config.moe_intermediate_size
        specs.experts(layer, experts, hidden, inner, activation="geglu_tanh")
    specs.vector("norm", hidden)
    return specs.finish(config.tie_word_embeddings, IGNORED, ((".mlp.experts.", ".experts."),))


def _attention_weights(specs: SpecList, layer: int, config: Config) -> None:
    stem, hidden = f"layers.{layer}.self_attn", config.hidden_size
    dim, kv_heads = config.heads(layer)
    specs.matrix(f"{stem}.q_proj", config.num_attention_heads * dim, hidden)
    specs.matrix(f"{stem}.k_proj", kv_heads * dim, hidden)
    if config.window(layer):
        specs.matrix(f"{stem}.v_proj", kv_heads * dim, hidden)
    specs.matrix(f"{stem}.o_proj", hidden, config.num_attention_heads * dim)
    specs.vector(f"{stem}.q_norm", dim)
    specs.vector(f"{stem}.k_norm", dim)


def build(config: Config, weights: Weights) -> Decoder:
    """Assemble the model from its resident weights."""
    layers = tuple(_layer(n, config, weights) for n in range(config.num_hidden_layers))
    pairs = config.full_rotated_pairs
    full = RotaryTable(config.full_head_dim, config.full_rope_theta, pairs=pairs)
    rope, scale = RotaryTable(config.head_dim, config.rope_theta), config.hidden_size**0.5
    cap = config.final_logit_softcapping
    return assemble(
        config, weights, layers, rope, more_ropes=(full,), embedding_scale=scale, softcap=cap
    )


def _layer(n: int, config: Config, weights: Weights) -> DecoderLayer:
    rope = 0 if config.window(n) else 1
    mixer = SandwichAttention(_attention(n, config, weights), n, rope)
    return DecoderLayer(
        mixer, SandwichMoe(n, _router(n, config, weights), _moe(n, config, weights))
    )


def _norms(n: int, weights: Weights) -> SandwichNorms:
    return SandwichNorms(*(weights.vectors[f"layers.{n}.{name}"] for name in NORMS))


def _attention(n: int, config: Config, weights: Weights) -> SandwichAttentionWeights:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    return SandwichAttentionWeights(
        norms=_norms(n, weights),
        q_proj=m[p + "self_attn.q_proj"],
        k_proj=m[p + "self_attn.k_proj"],
        v_proj=m.get(p + "self_attn.v_proj"),
        o_proj=m[p + "self_attn.o_proj"],
        q_norm=v[p + "self_attn.q_norm"],
        k_norm=v[p + "self_attn.k_norm"],
        v_norm=np.ones(config.heads(n)[0], dtype=np.float32),
        eps=config.rms_norm_eps,
        window=config.window(n),
    )


def _router(n: int, config: Config, weights: Weights) -> RouterWeights:
    """Its norm has no weight: the result is multiplied by scale / sqrt(H), element by element."""
    scale = weights.vectors[f"layers.{n}.router.scale"]
    return RouterWeights(
        norm=scale * np.float32(config.hidden_size**-0.5),
        gate=weights.matrices[f"layers.{n}.router.proj"],
        num_experts_per_tok=config.num_experts_per_tok,
        renormalize=True,
        eps=config.rms_norm_eps,
    )


def _moe(n: int, config: Config, weights: Weights) -> SandwichMoeWeights:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    return SandwichMoeWeights(
        norms=_norms(n, weights),
        gate_up=m[p + "mlp.gate_up"],
        down=m[p + "mlp.down_proj"],
        expert_scale=v[p + "router.per_expert_scale"],
        layer_scale=v[p + "layer_scalar"],
        eps=config.rms_norm_eps,
    )


def state_bytes(config: Config, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context; windows are rings of a fixed size."""
    layers = range(config.num_hidden_layers)
    rows = (cache_positions(context_length, config.window(n)) for n in layers)
    return 2 * kv_itemsize * sum(math.prod(config.heads(n)) * row for n, row in enumerate(rows))
