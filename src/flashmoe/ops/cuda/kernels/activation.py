"""What makes one value of a gate and an up value."""

import triton
import triton.language as tl


@triton.jit
def activated(gate, up, CLAMPED: tl.constexpr):
    """ops.base.Activation: silu(gate) * up, or the clamped SwiGLU. NaN stays NaN."""
    if CLAMPED:
        gate = tl.where(gate > 7.0, 7.0, gate)
        up = tl.where(up > 7.0, 7.0, tl.where(up < -7.0, -7.0, up))
        value = gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    else:
        value = gate / (1.0 + tl.exp(-gate)) * up
    return value


@triton.jit
def gate_biases(bias_ptr, row, mask):
    """Biases of the gate and up rows `row`, which alternate in blocks of 8."""
    at = bias_ptr + row // 8 * 16 + row % 8
    return tl.load(at, mask=mask, other=0.0), tl.load(at + 8, mask=mask, other=0.0)
