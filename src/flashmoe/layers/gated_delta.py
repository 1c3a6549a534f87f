"""Gated DeltaNet: linear attention whose state is corrected by a delta rule and decays.

Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule" (2024), in the form of
Qwen3-Next and Qwen3.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import DTypeLike

from flashmoe.layers.state import DeltaState, Segment, StateMemory, Step
from flashmoe.ops.base import Floats, Matrix, Ops


@dataclass(frozen=True)
class GatedDeltaWeights:
    """Kd = Hk * Dk, Vd = Hv * Dv; in_proj_qkv and conv1d are in the order q, k, v."""

    in_proj_qkv: Matrix  # [2 Kd + Vd, H]
    in_proj_z: Matrix  # [Vd, H]
    in_proj_a: Matrix  # [Hv, H]
    in_proj_b: Matrix  # [Hv, H]
    out_proj: Matrix  # [H, Vd]
    conv1d: Floats  # [2 Kd + Vd, W]
    a_log: Floats  # [Hv]
    dt_bias: Floats  # [Hv]
    norm: Floats  # [Dv]


@dataclass(frozen=True)
class GatedDelta:
    """Projection, short convolution, delta rule, gated norm, projection."""

    weights: GatedDeltaWeights
    layer: int
    eps: float
    num_key_heads: int
    num_value_heads: int

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> DeltaState:
        """The state of the empty sequence; its size does not depend on the context."""
        channels, width = self.weights.conv1d.shape
        value_dim = len(self.weights.norm)
        key_dim = (channels - self.num_value_heads * value_dim) // (2 * self.num_key_heads)
        s = (self.num_value_heads, key_dim, value_dim)
        return DeltaState((width - 1, channels), s, memory)

    def add_to(self, h: Floats, x: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += gated delta rule of the normed input x [T, H]."""
        ops.clock.phase = "delta"
        w = self.weights
        qkv, z, a, b = ops.linear(x, w.in_proj_qkv, w.in_proj_z, w.in_proj_a, w.in_proj_b)
        outs = []
        for segment in step.segments:
            rows = slice(segment.begin, segment.end)
            outs.append(self._recur(qkv[rows], a[rows], b[rows], segment, ops))
        out = ops.concat(outs)  # [T, Hv, Dv]
        flat = out.reshape(-1, out.shape[-1])
        ops.gated_rms_norm(flat, z.reshape(flat.shape), w.norm, self.eps)
        ops.linear_add(out.reshape(len(x), -1), w.out_proj, h)

    def _recur(self, qkv: Floats, a: Floats, b: Floats, segment: Segment, ops: Ops) -> Floats:
        w, state = self.weights, segment.state.layers[self.layer]
        assert isinstance(state, DeltaState)
        mixed = ops.causal_conv_silu(qkv, w.conv1d, state.conv)
        return ops.gated_delta(mixed, a, b, w.a_log, w.dt_bias, state.s, segment.start)
