"""Dense layers in front, then sigmoid routing in groups beside a shared expert: what families that
follow DeepSeek-V3 (https://arxiv.org/abs/2412.19437, 2.1.2) have in common.

Their configs say first_k_dense_replace, intermediate_size, num_experts, n_group, topk_group,
n_shared_experts, moe_intermediate_size and routed_scaling_factor.
"""

from __future__ import annotations

from typing import Any

from flashmoe.checkpoint.config import ConfigReader
from flashmoe.layers.moe import DenseMlp, SparseMoe
from flashmoe.models.decoder import Weights, router_weights
from flashmoe.models.spec_list import SpecList
from flashmoe.ops.parts import DenseMlpWeights, SharedExpertWeights, SigmoidRouting


def dense_layers(reader: ConfigReader, layers: int) -> int:
    """Layers without experts, all in front: a number, or (GLM) the kind of each layer."""
    kinds = reader.choices("mlp_layer_types", ("dense", "sparse"), layers)
    if kinds is None:
        return reader.integer("first_k_dense_replace", low=0, high=layers - 1)
    dense = kinds.count("dense")
    if dense == layers or "dense" in kinds[dense:]:
        reader.fail("mlp_layer_types", "dense layers, then sparse ones", list(kinds))
    reader.require("first_k_dense_replace", dense, default=dense)
    return dense


def expert_groups(reader: ConfigReader, num_experts: int) -> tuple[int, int]:
    """n_group, which divides the experts, and topk_group."""
    groups = reader.integer("n_group", default=1)
    if num_experts % groups:
        reader.fail("n_group", f"a divisor of {num_experts}", groups)
    return groups, reader.integer("topk_group", default=1, high=groups)


def add_mlp(specs: SpecList, layer: int, config: Any) -> None:
    """The weights of a layer after attention, but for its norm: dense or routed."""
    stem, hidden, inner = f"layers.{layer}.mlp", config.hidden_size, config.moe_intermediate_size
    if layer < config.first_k_dense_replace:
        specs.mlp(stem, config.intermediate_size, hidden)
        return
    specs.matrix(f"{stem}.gate", config.num_experts, hidden, role="exact")
    specs.vector(f"{stem}.gate.e_score_correction_bias", config.num_experts, suffix="")
    specs.mlp(f"{stem}.shared_experts", inner * config.n_shared_experts, hidden)
    specs.experts(layer, config.num_experts, hidden, inner)


def build_mlp(n: int, config: Any, weights: Weights) -> DenseMlp | SparseMoe:
    """What `add_mlp` declared, assembled."""
    if n < config.first_k_dense_replace:
        return DenseMlp(_dense_mlp(n, config, weights))
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}.mlp."
    sigmoid = SigmoidRouting(
        correction=v[p + "gate.e_score_correction_bias"],
        groups=config.n_group,
        chosen_groups=config.topk_group,
        scale=config.routed_scaling_factor,
    )
    shared = SharedExpertWeights(
        gate_up=m[p + "shared_experts.gate_up"],
        down=m[p + "shared_experts.down_proj"],
        gate=None,
    )
    return SparseMoe(n, router_weights(n, config, weights, sigmoid), shared)


def _dense_mlp(n: int, config: Any, weights: Weights) -> DenseMlpWeights:
    m, v, p = weights.matrices, weights.vectors, f"layers.{n}."
    return DenseMlpWeights(
        norm=v[p + "post_attention_layernorm"],
        gate_up=m[p + "mlp.gate_up"],
        down=m[p + "mlp.down_proj"],
        eps=config.rms_norm_eps,
    )
