"""Gated DeltaNet: linear attention whose state is corrected by a delta rule and decays.

Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule" (2024), in the form of
Qwen3-Next and Qwen3.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import DTypeLike

from flashmoe.layers.state import DeltaState, StateMemory, Step
from flashmoe.ops.base import Floats, Ops
from flashmoe.ops.parts import GatedDeltaWeights


@dataclass(frozen=True)
class GatedDelta:
    """Projection, short convolution, delta rule, gated norm, projection.

    Step by step: ops/composed.py, add_gated_delta.
    """

    weights: GatedDeltaWeights
    layer: int

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> DeltaState:
        """The state of the empty sequence; its size does not depend on the context."""
        w = self.weights
        channels, width = w.conv1d.shape
        value_heads, value_dim = len(w.a_log), len(w.norm)
        key_dim = (channels - value_heads * value_dim) // (2 * w.num_key_heads)
        s = (value_heads, key_dim, value_dim)
        return DeltaState((width - 1, channels), s, memory)

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += gated delta rule of norm(h)."""
        ops.add_gated_delta(h, self.weights, step.spans(self.layer, DeltaState))
