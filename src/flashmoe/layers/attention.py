"""Grouped-query attention with per-head norms, rotary positions and an optional output gate."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import DTypeLike

from flashmoe.layers.state import KvCache, Step
from flashmoe.ops.base import Floats, Ops
from flashmoe.ops.parts import AttentionWeights


@dataclass(frozen=True)
class Attention:
    """h += o_proj(softmax(q k^T / sqrt(D)) v (* sigmoid(gate))): q, k, v and gate are projections
    of norm(h), q and k normed per head and rotated; k and v of all earlier tokens are kept.

    Step by step: ops/composed.py, add_attention.
    """

    weights: AttentionWeights
    layer: int

    def new_state(self, context_length: int, kv_dtype: DTypeLike) -> KvCache:
        """An empty cache for one sequence."""
        w = self.weights
        return KvCache(w.num_key_value_heads, context_length, w.head_dim, kv_dtype)

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += attention of norm(h)."""
        ops.add_attention(h, self.weights, step.rope, step.spans(self.layer, KvCache))
