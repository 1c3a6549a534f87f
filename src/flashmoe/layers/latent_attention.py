"""Multi-head latent attention with absorbed projections: what is kept is shared by all heads.

DeepSeek-V2 (https://arxiv.org/abs/2405.04434, section 2.1). A token's key and value are k_up c and
v_up c per head, c its latent vector, and a rotated part of the key that all heads share. As
(k_up c) . q = c . (k_up^T q), queries are brought into the latent space instead: attention of many
query heads over one key head, whose values are the first part of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import DTypeLike

from flashmoe.layers.state import LatentCache, StateMemory, Step
from flashmoe.ops.base import Floats, Ops
from flashmoe.ops.parts import LatentAttentionWeights


@dataclass(frozen=True)
class LatentAttention:
    """h += o_proj(v_up(softmax(scale * q k^T) c)) with queries, keys k and c in the latent space.

    Step by step: ops/plain_parts.py, add_latent_attention.
    """

    weights: LatentAttentionWeights
    layer: int

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> LatentCache:
        """An empty cache for one sequence."""
        w = self.weights
        return LatentCache(context_length, w.rank, w.rope_dim, kv_dtype, memory)

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += attention of norm(h)."""
        spans = step.spans(self.layer, LatentCache)
        ops.add_latent_attention(h, self.weights, step.rope, spans)
