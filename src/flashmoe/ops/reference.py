"""The slow, obvious backend: every op through its NumPy twin, in float64 where the twin is.

For tests and for hunting errors: a whole model runs on it. Expert records are read from the same
addresses as the kernels read them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops import reference_layers, reference_linear
from flashmoe.ops.base import Activation, Array, ExpertShape, Floats, Ints
from flashmoe.ops.clock import PhaseClock
from flashmoe.ops.composed import ComposedParts
from flashmoe.ops.host import HostArrays
from flashmoe.ops.parts import SigmoidRouting
from flashmoe.quant import Format


def _floats(x: NDArray[np.floating]) -> Floats:
    return np.ascontiguousarray(x, dtype=np.float32)


@dataclass(frozen=True)
class DecodedMatrix:
    """A matrix as the numbers that its bytes mean: w float32 [rows, cols]."""

    format: Format
    w: Floats

    @property
    def rows(self) -> int:
        return int(self.w.shape[0])

    @property
    def cols(self) -> int:
        return int(self.w.shape[1])


class ReferenceOps(ComposedParts, HostArrays):
    """flashmoe.ops.base.Ops in NumPy."""

    def __init__(self) -> None:
        self.clock = PhaseClock()

    def begin_pass(self) -> None:
        self.clock.take()

    def begin_layer(self) -> None:
        """Nothing is reused here."""

    def release_scratch(self) -> None:
        """Nothing is kept here."""

    def empty(self, *shape: int) -> Floats:
        return np.full(shape, np.nan, np.float32)

    def concat(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate(parts)

    def matrix(self, fmt: Format, rows: int, cols: int, data: NDArray[np.uint8]) -> DecodedMatrix:
        return DecodedMatrix(fmt, fmt.decode(data, rows, cols))

    def embed(self, table: DecodedMatrix, ids: Ints) -> Floats:
        return table.w[ids]

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        return _floats(reference_layers.rms_norm(x, weight, eps))

    def linear(self, x: Floats, *matrices: DecodedMatrix) -> tuple[Floats, ...]:
        return tuple(_floats(reference_linear.linear(x, m.w, m.format.group)) for m in matrices)

    def linear_add(self, x: Floats, matrix: DecodedMatrix, out: Floats) -> None:
        out += self.linear(x, matrix)[0]

    def head_linear(self, x: Floats, matrix: DecodedMatrix, out: Floats) -> None:
        out[...] = reference_linear.head_linear(x, matrix.w, matrix.format.group)

    def add_bias(self, x: Floats, bias: Floats) -> None:
        x += bias

    def head_norm_rope(
        self,
        x: Floats,
        weight: Floats | None,
        eps: float,
        cos: Floats,
        sin: Floats,
        out: Floats | None = None,
    ) -> Floats:
        result = _floats(reference_layers.head_norm_rope(x, weight, eps, cos, sin))
        if out is not None:
            out[...] = result
        return result

    def kv_store(
        self, k: Floats, v: Floats, k_cache: Array, v_cache: Array, start: int, window: int = 0
    ) -> None:
        slots = np.arange(start, start + len(k))
        if window:
            slots %= k_cache.shape[1]
        k_cache[:, slots] = k.transpose(1, 0, 2)
        v_cache[:, slots] = v.transpose(1, 0, 2)

    def attention(
        self,
        q: Floats,
        k_cache: Array,
        v_cache: Array,
        start: int,
        scale: float,
        window: int = 0,
        sinks: Floats | None = None,
    ) -> Floats:
        out = reference_layers.attention(q, k_cache, v_cache, start, scale, window, sinks)
        return _floats(out)

    def index_topk(self, q: Floats, weights: Floats, keys: Array, seen: Ints, k: int) -> Ints:
        return reference_layers.index_topk(q, weights, keys, seen, k)

    def sigmoid(self, x: Floats) -> Floats:
        return _floats(reference_layers.sigmoid(x))

    def sigmoid_gate(self, x: Floats, gate: Floats) -> None:
        x[...] = reference_layers.sigmoid_gate(x, gate)

    def causal_conv_silu(self, u: Floats, weight: Floats, state: Floats) -> Floats:
        out, state[...] = reference_layers.causal_conv_silu(u, weight, state)
        return _floats(out)

    def gated_delta(
        self,
        qkv: Floats,
        a: Floats,
        b: Floats,
        a_log: Floats,
        dt_bias: Floats,
        state: Floats,
        position: int,
    ) -> Floats:
        value_heads, key_dim, value_dim = state.shape
        key_heads = (qkv.shape[1] - value_heads * value_dim) // (2 * key_dim)
        out, state[...] = reference_layers.gated_delta(qkv, a, b, a_log, dt_bias, state, key_heads)
        return _floats(out)

    def gated_rms_norm(self, x: Floats, gate: Floats, weight: Floats, eps: float) -> None:
        x[...] = reference_layers.gated_rms_norm(x, gate, weight, eps)

    def route(
        self,
        x: Floats,
        gate: DecodedMatrix,
        k: int,
        renormalize: bool,
        bias: Floats | None = None,
        sigmoid: SigmoidRouting | None = None,
    ) -> tuple[Ints, Floats]:
        (logits,) = self.linear(x, gate)
        if bias is not None:
            logits += bias
        if sigmoid is None:
            ids, weights = reference_layers.softmax_topk(logits, k, renormalize, 1.0)
        else:
            s = sigmoid
            groups = (s.correction, s.groups, s.chosen_groups)
            ids, weights = reference_layers.sigmoid_topk(logits, *groups, k, renormalize, s.scale)
        return ids, _floats(weights)

    def ffn_add(
        self,
        x: Floats,
        gate_up: DecodedMatrix,
        down: DecodedMatrix,
        out: Floats,
        scale: Floats | None,
        activation: Activation = "swiglu",
    ) -> None:
        formats = gate_up.format, down.format
        y = reference_linear.ffn(x, gate_up.w, down.w, *formats, activation)
        out += _floats(y if scale is None else y * scale[:, None])

    def experts(self, x: Floats, shape: ExpertShape, rows: int) -> ReferenceExpertCall:
        return ReferenceExpertCall(x, shape, np.full((rows, shape.hidden_size), np.nan, np.float32))

    def combine(self, rows: Floats, weights: Floats, out: Floats) -> None:
        out[...] = reference_layers.combine(rows, weights, out)


@dataclass(frozen=True)
class ReferenceExpertCall:
    """flashmoe.ops.base.ExpertCall in NumPy: decode a record, apply it, forget it."""

    x: Floats
    shape: ExpertShape
    rows: Floats

    def run(self, addresses: NDArray[np.uint64], offsets: Ints, tokens: Ints, dests: Ints) -> None:
        for i, address in enumerate(addresses.tolist()):
            span = slice(offsets[i], offsets[i + 1])
            gate_up, down = self._decode(address)
            self.rows[dests[span]] = reference_linear.ffn(
                self.x[tokens[span]],
                gate_up,
                down,
                self.shape.gate_up,
                self.shape.down,
                self.shape.activation,
                self._biases(address),
            )

    def _decode(self, address: int) -> tuple[Floats, Floats]:
        s, rows = self.shape, 2 * self.shape.intermediate_size
        gate_up = _bytes_at(address, s.gate_up.nbytes(rows, s.hidden_size))
        down_bytes = s.down.nbytes(s.hidden_size, s.intermediate_size)
        down = _bytes_at(address + s.down_offset, down_bytes)
        return (
            s.gate_up.decode(gate_up, rows, s.hidden_size),
            s.down.decode(down, s.hidden_size, s.intermediate_size),
        )

    def _biases(self, address: int) -> tuple[Floats, Floats] | None:
        s = self.shape
        if not s.bias_offset:
            return None
        sizes = (2 * s.intermediate_size, s.hidden_size)
        biases = _bytes_at(address + s.bias_offset, 4 * sum(sizes)).view("<f4")
        return biases[: sizes[0]], biases[sizes[0] :]


def _bytes_at(address: int, nbytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
