"""Grouped-query attention with per-head norms, rotary positions and an optional output gate."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import DTypeLike

from flashmoe.layers.state import KvCache, StateMemory, Step
from flashmoe.ops.base import Floats, Matrix, Ops


@dataclass(frozen=True)
class AttentionWeights:
    """q_proj [Hq * D (* 2 if gated), H], k_proj and v_proj [Hkv * D, H], o_proj [H, Hq * D]."""

    q_proj: Matrix
    k_proj: Matrix
    v_proj: Matrix
    o_proj: Matrix
    q_norm: Floats  # [D]
    k_norm: Floats  # [D]


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T / sqrt(D)) v, q and k normed per head and rotated.

    gated: each head of q_proj is [q | gate], and the result is multiplied by sigmoid(gate)
    (Qwen3-Next and Qwen3.5).
    """

    weights: AttentionWeights
    layer: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    eps: float
    gated: bool = False

    def new_state(self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory) -> KvCache:
        """An empty cache for one sequence."""
        return KvCache(self.num_key_value_heads, context_length, self.head_dim, kv_dtype, memory)

    def add_to(self, h: Floats, x: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += attention of the normed input x [T, H]."""
        ops.clock.phase = "attention"
        w, tokens = self.weights, len(x)
        q, k, v = ops.linear(x, w.q_proj, w.k_proj, w.v_proj)
        q = q.reshape(tokens, self.num_heads, -1)  # [T, Hq, D] or [T, Hq, 2 D]
        k = k.reshape(tokens, self.num_key_value_heads, self.head_dim)
        v = v.reshape(k.shape)
        gate = q[..., self.head_dim :]
        q = ops.head_norm_rope(q[..., : self.head_dim], w.q_norm, self.eps, *step.rope)
        k = ops.head_norm_rope(k, w.k_norm, self.eps, *step.rope)
        out = self._attend(q, k, v, step, ops)
        if self.gated:
            ops.sigmoid_gate(out, gate)
        ops.linear_add(out.reshape(tokens, -1), w.o_proj, h)

    def _attend(self, q: Floats, k: Floats, v: Floats, step: Step, ops: Ops) -> Floats:
        """Store k and v, then attend, sequence by sequence -> [T, Hq, D]."""
        scale = self.head_dim**-0.5
        outs = []
        for segment in step.segments:
            rows = slice(segment.begin, segment.end)
            cache = segment.state.layers[self.layer]
            assert isinstance(cache, KvCache)
            ops.kv_store(k[rows], v[rows], cache.k, cache.v, segment.start)
            outs.append(ops.attention(q[rows], cache.k, cache.v, segment.start, scale))
        return ops.concat(outs)
