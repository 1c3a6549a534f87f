"""Grouped-query attention: per-head norms, biases, output gate, window, sinks as families want."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import DTypeLike

from flashmoe.layers.state import KvCache, StateMemory, Step, cache_positions
from flashmoe.ops.base import Floats, Ops
from flashmoe.ops.parts import AttentionWeights


@dataclass(frozen=True)
class Attention:
    """h += o_proj(softmax(q k^T / sqrt(D)) v (* sigmoid(gate))): q, k, v and gate are projections
    of norm(h), q and k normed per head and rotated; k and v of the tokens before are kept.

    Step by step: ops/composed.py, add_attention.
    """

    weights: AttentionWeights
    layer: int

    def new_state(self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory) -> KvCache:
        """An empty cache for one sequence."""
        w = self.weights
        positions = cache_positions(context_length, w.window)
        shape = w.num_key_value_heads, positions, w.head_dim
        return KvCache(*shape, kv_dtype, memory, ring=w.window > 0)

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += attention of norm(h)."""
        ops.add_attention(h, self.weights, step.rope, step.spans(self.layer, KvCache))
