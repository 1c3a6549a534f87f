"""Gemma 4's layers: norms before and after each part, a dense MLP beside the routed experts, both
of the residual as attention left it.

"Sandwich" norms: Ding et al., CogView, 2021 (https://arxiv.org/abs/2105.13290, section 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.layers.moe import RoutedExperts, Routes, guess_of
from flashmoe.layers.state import KvCache, StateMemory, Step, cache_positions
from flashmoe.ops.base import Floats, Ints, Matrix, Ops
from flashmoe.ops.composed import attend
from flashmoe.ops.parts import Routed, RouterWeights


class SandwichNorms(NamedTuple):
    """The norms [H] of a layer: of the input of each part, of its result, of the experts' sum."""

    attention: Floats
    attention_post: Floats
    dense: Floats
    dense_post: Floats
    experts: Floats
    experts_post: Floats
    sum_post: Floats


@dataclass(frozen=True, eq=False)
class SandwichAttentionWeights:
    """Grouped-query attention with a norm per head of queries, keys and (weightless) values.

    v_proj None: values are keys before norm and rotation. window: as in AttentionWeights.
    """

    norms: SandwichNorms
    q_proj: Matrix  # [Hq * D, H]
    k_proj: Matrix  # [Hkv * D, H]
    v_proj: Matrix | None  # [Hkv * D, H]
    o_proj: Matrix  # [H, Hq * D]
    q_norm: Floats  # [D]
    k_norm: Floats  # [D]
    v_norm: Floats  # [D], ones
    eps: float
    window: int = 0


@dataclass(frozen=True)
class SandwichAttention:
    """h += post_norm(o_proj(softmax(q k^T) v)); scores are not scaled, as q and k are normed.

    rope: which of the model's rotary tables the layer uses.
    """

    weights: SandwichAttentionWeights
    layer: int
    rope: int

    def new_state(self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory) -> KvCache:
        """An empty cache for one sequence."""
        w = self.weights
        head_dim = len(w.k_norm)
        positions = cache_positions(context_length, w.window)
        shape = w.k_proj.rows // head_dim, positions, head_dim
        return KvCache(*shape, kv_dtype, memory, ring=w.window > 0)

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += attention of norm(h)."""
        ops.begin_layer()
        ops.clock.phase = "attention"
        w = self.weights
        qkv = self._heads(ops.rms_norm(h, w.norms.attention, w.eps), step.ropes[self.rope], ops)
        out = attend(ops, qkv, step.spans(self.layer, KvCache), scale=1.0, window=w.window)
        (y,) = ops.linear(out.reshape(len(h), -1), w.o_proj)
        h += ops.rms_norm(y, w.norms.attention_post, w.eps)

    def _heads(
        self, x: Floats, rope: tuple[Floats, Floats], ops: Ops
    ) -> tuple[Floats, Floats, Floats]:
        """x [T, H] -> q [T, Hq, D], k and v [T, Hkv, D], normed, q and k rotated."""
        w, shape = self.weights, (len(x), -1, len(self.weights.k_norm))
        if w.v_proj is None:
            q, k = ops.linear(x, w.q_proj, w.k_proj)
            v = k
        else:
            q, k, v = ops.linear(x, w.q_proj, w.k_proj, w.v_proj)
        values = ops.rms_norm(v.reshape(-1, shape[2]), w.v_norm, w.eps).reshape(shape)
        return (
            ops.head_norm_rope(q.reshape(shape), w.q_norm, w.eps, *rope),
            ops.head_norm_rope(k.reshape(shape), w.k_norm, w.eps, *rope),
            values,
        )


@dataclass(frozen=True, eq=False)
class SandwichMoeWeights:
    """A dense GeGLU and what stands around it and the routed experts."""

    norms: SandwichNorms
    gate_up: Matrix  # [2 I, H], rows of gate and up alternating in blocks of 8
    down: Matrix  # [H, I]
    expert_scale: Floats  # [E], what routing weights are multiplied by
    layer_scale: Floats  # [1], of the residual after this layer
    eps: float


@dataclass(frozen=True)
class SandwichMoe:
    """h = (h + post_norm(dense + routed)) * layer_scale, dense and routed normed before and after.

    router.norm is that of the router's own input.
    """

    layer: int
    router: RouterWeights
    weights: SandwichMoeWeights

    def add_to(
        self,
        h: Floats,
        experts: RoutedExperts,
        ops: Ops,
        following: Routes | None = None,
        ids: Ints | None = None,
    ) -> None:
        """h [T, H] += dense MLP and routed experts. following: the next layer's."""
        ops.begin_layer()
        w, ahead = self.weights, following if experts.wants_ahead else None
        routed = self._route(h, ops, ahead)
        weights = routed.weights * w.expert_scale[routed.ids]
        ticket = experts.begin(self.layer, routed.ids, guess_of(ahead, routed))
        with ticket:
            total = self._dense(h, ops)
            x = ops.rms_norm(h, w.norms.experts, w.eps)
            out = _zeros(ops, h)
            ops.clock.phase = "experts"
            experts.finish(ticket, x, weights, out)
        total += ops.rms_norm(out, w.norms.experts_post, w.eps)
        h += ops.rms_norm(total, w.norms.sum_post, w.eps)
        h *= w.layer_scale

    def _route(self, h: Floats, ops: Ops, ahead: Routes | None) -> Routed:
        return ops.norm_and_route(h, self.router, None if ahead is None else ahead.router)

    def _dense(self, h: Floats, ops: Ops) -> Floats:
        """The dense MLP of h, normed before and after -> [T, H]."""
        ops.clock.phase = "shared"
        w, out = self.weights, _zeros(ops, h)
        x = ops.rms_norm(h, w.norms.dense, w.eps)
        ops.ffn_add(x, w.gate_up, w.down, out, None, "geglu_tanh")
        return ops.rms_norm(out, w.norms.dense_post, w.eps)


def _zeros(ops: Ops, like: Floats) -> Floats:
    out = ops.empty(*like.shape)
    out[...] = np.float32(0)
    return out
