"""Slow truth of the matrix products, in float64: the kernels are measured against it.

The weights are those that the stored bytes mean (flashmoe.quant). Products with q8 and q4 weights
see the int8 form of their input, as the kernels do; bf16 weights see the input itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmoe.quant import Format
from flashmoe.quant.layout import ROWS, Floats

Doubles = NDArray[np.float64]


def quantize_rows(x: Floats, group: int) -> tuple[NDArray[np.int8], Floats]:
    """x float32 [T, K] -> int8 codes [T, K] and float32 scales [T, K / group].

    scale = max|x| / 127 and code = round-half-even(x * (127 / max|x|)) per row and group. A group
    whose 127 / max|x| overflows counts as zero: codes 0, scale 0.
    """
    grouped = np.asarray(x, dtype=np.float32).reshape(x.shape[0], -1, group)
    largest = np.abs(grouped).max(axis=2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(127) / largest
    usable = np.isfinite(inverse)
    inverse = np.where(usable, inverse, np.float32(0))
    codes = np.rint(grouped * inverse[..., None]).astype(np.int8)
    return codes.reshape(x.shape), np.where(usable, largest / np.float32(127), np.float32(0))


def seen_by_kernel(x: Floats, group: int) -> Doubles:
    """The values that x [T, K] has for weights of this group size (0: bf16, x itself)."""
    if group == 0:
        return x.astype(np.float64)
    codes, scales = quantize_rows(x, group)
    return codes.astype(np.float64) * np.repeat(scales, group, axis=1)


def linear(x: Floats, w: Floats, group: int) -> Doubles:
    """x [T, K], w [rows, K] decoded weights of that group size -> x @ w.T, float64 [T, rows]."""
    return seen_by_kernel(x, group) @ w.astype(np.float64).T


def silu_mul(gate: Doubles, up: Doubles) -> Floats:
    """silu(gate) * up, computed in float64 -> float32 of the same shape."""
    decay = np.exp(np.minimum(-gate, 700.0))
    return (gate / (1.0 + decay) * up).astype(np.float32)


def hidden(x: Floats, gate_up: Floats, fmt: Format) -> Floats:
    """silu(gate) * up of x [T, H] with decoded weights gate_up [2 I, H] -> float32 [T, I]."""
    halves = linear(x, gate_up, fmt.group).reshape(x.shape[0], -1, 2, ROWS)
    gate, up = (halves[:, :, i].reshape(x.shape[0], -1) for i in range(2))
    return silu_mul(gate, up)


def ffn(
    x: Floats, gate_up: Floats, down: Floats, gate_up_format: Format, down_format: Format
) -> Doubles:
    """down(silu(gate) * up) of x [T, H]: decoded weights gate_up [2 I, H], whose gate and up rows
    alternate by 8, and down [H, I] -> float64 [T, H]."""
    return linear(hidden(x, gate_up, gate_up_format), down, down_format.group)
