"""Slow truth of the matrix products, in float64: the kernels are measured against it.

The weights are those that the stored bytes mean (flashmoe.quant). Products with q8 and q4 weights
see the int8 form of their input, as the kernels do; bf16 weights see the input itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops.base import Activation
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


def head_linear(x: Floats, w: Floats, group: int) -> Doubles:
    """x [T, heads, K], w [heads * N, K], N rows for each head in turn -> [T, heads, N]."""
    heads = x.shape[1]
    maps = w.reshape(heads, -1, w.shape[1])
    return np.stack([linear(x[:, h], maps[h], group) for h in range(heads)], axis=1)


def silu_mul(gate: Doubles, up: Doubles) -> Floats:
    """silu(gate) * up, computed in float64 -> float32 of the same shape."""
    decay = np.exp(np.minimum(-gate, 700.0))
    return (gate / (1.0 + decay) * up).astype(np.float32)


def swiglu_clamped(gate: Doubles, up: Doubles) -> Floats:
    """g * sigmoid(1.702 g) * (u + 1) with g = min(gate, 7), u = clip(up, -7, 7), in float64."""
    g, u = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return (g / (1.0 + np.exp(np.minimum(-1.702 * g, 700.0))) * (u + 1.0)).astype(np.float32)


def swiglu_limited(gate: Doubles, up: Doubles) -> Floats:
    """silu(min(gate, 10)) * clip(up, -10, 10), in float64."""
    return silu_mul(np.minimum(gate, 10.0), np.clip(up, -10.0, 10.0))


def geglu_tanh(gate: Doubles, up: Doubles) -> Floats:
    """gelu(gate) * up, gelu(g) = g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3))): Hendrycks
    and Gimpel 2016, in float64."""
    inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)
    return (0.5 * gate * (1.0 + np.tanh(inner)) * up).astype(np.float32)


ACTIVATIONS: dict[Activation, Callable[[Doubles, Doubles], Floats]] = {
    "swiglu": silu_mul,
    "swiglu_clamped": swiglu_clamped,
    "swiglu_limited": swiglu_limited,
    "geglu_tanh": geglu_tanh,
}


def hidden(
    x: Floats,
    gate_up: Floats,
    fmt: Format,
    activation: Activation = "swiglu",
    bias: Floats | None = None,
) -> Floats:
    """The activation of gate and up of x [T, H] -> float32 [T, I].

    gate_up: decoded weights [2 I, H]; bias [2 I], in the order of their rows.
    """
    both = linear(x, gate_up, fmt.group) + (0.0 if bias is None else bias.astype(np.float64))
    halves = both.reshape(x.shape[0], -1, 2, ROWS)
    gate, up = (halves[:, :, i].reshape(x.shape[0], -1) for i in range(2))
    return ACTIVATIONS[activation](gate, up)


def ffn(
    x: Floats,
    gate_up: Floats,
    down: Floats,
    gate_up_format: Format,
    down_format: Format,
    activation: Activation = "swiglu",
    biases: tuple[Floats, Floats] | None = None,
) -> Doubles:
    """down(activation(gate, up)) of x [T, H]: decoded weights gate_up [2 I, H], whose gate and up
    rows alternate by 8, and down [H, I], biases of both -> float64 [T, H]."""
    first, second = biases or (None, None)
    inner = hidden(x, gate_up, gate_up_format, activation, first)
    out = linear(inner, down, down_format.group)
    return out if second is None else out + second.astype(np.float64)
