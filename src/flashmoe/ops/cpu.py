"""The CPU backend: each op is one call of the native core, timed under the current phase."""

from __future__ import annotations

import functools
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops.base import Array, ExpertShape, Floats, Ints
from flashmoe.ops.clock import PhaseClock
from flashmoe.ops.host import HostArrays
from flashmoe.ops.scratch import Scratch
from flashmoe.quant import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

_DELTA_CHUNK = 64


def delta_spans(position: int, tokens: int) -> list[tuple[slice, int]]:
    """Cut tokens at positions position... into (rows, chunk): whole blocks of 64 in the chunked
    form, what is left at either end in the recurrent form (chunk 0).

    Blocks start at absolute multiples of 64, so that the result does not depend on how a prompt
    is cut into passes as long as the cuts fall on such multiples.
    """
    head = min(-position % _DELTA_CHUNK, tokens)
    body = (tokens - head) // _DELTA_CHUNK * _DELTA_CHUNK
    spans = [(0, head, 0), (head, head + body, _DELTA_CHUNK), (head + body, tokens, 0)]
    return [(slice(begin, end), chunk) for begin, end, chunk in spans if end > begin]


class CpuOps(HostArrays):
    """flashmoe.ops.base.Ops on native kernels of one isa, with a thread pool of its own."""

    def __init__(self, threads: int, isa: str = "auto") -> None:
        self._isa = isa
        self.clock = PhaseClock()
        self.pool = _native.Pool(threads)
        self.scratch = Scratch()
        self._acts = _native.Activations()
        self._expert_acts = _native.Activations()

    def begin_pass(self) -> None:
        # The choice is the process's, and another model may have chosen differently meanwhile.
        _native.select_isa(self._isa)
        self.clock.take()

    def begin_layer(self) -> None:
        self.scratch.reset()

    def matrix(self, fmt: Format, rows: int, cols: int, data: NDArray[np.uint8]) -> _native.Matrix:
        return _native.Matrix(fmt.name, fmt.group, rows, cols, data)

    def concat(self, parts: Sequence[Floats]) -> Floats:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def embed(self, table: _native.Matrix, ids: Ints) -> Floats:
        start = perf_counter()
        out = np.empty((len(ids), table.cols), dtype=np.float32)
        _native.embed(self.pool, table, ids, out)
        self.clock.add(perf_counter() - start)
        return out

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        start = perf_counter()
        out = self.scratch.take(*x.shape)
        _native.rms_norm(self.pool, x, weight, eps, out)
        self.clock.add(perf_counter() - start)
        return out

    def linear(self, x: Floats, *matrices: _native.Matrix) -> tuple[Floats, ...]:
        start = perf_counter()
        outs = [self.scratch.take(len(x), matrix.rows) for matrix in matrices]
        self._linear(x, matrices, outs, accumulate=False)
        self.clock.add(perf_counter() - start)
        return tuple(outs)

    def linear_add(self, x: Floats, matrix: _native.Matrix, out: Floats) -> None:
        start = perf_counter()
        self._linear(x, [matrix], [out], accumulate=True)
        self.clock.add(perf_counter() - start)

    def _linear(
        self,
        x: Floats,
        matrices: Sequence[_native.Matrix],
        outs: Sequence[Floats],
        accumulate: bool,
    ) -> None:
        group = max(matrix.group for matrix in matrices)
        self._acts.assign(self.pool, x, group)
        _native.linear(self.pool, self._acts, list(matrices), list(outs), accumulate)

    def head_norm_rope(
        self, x: Floats, weight: Floats | None, eps: float, cos: Floats, sin: Floats
    ) -> Floats:
        start = perf_counter()
        out = self.scratch.take(*x.shape)
        _native.head_norm_rope(self.pool, x, weight, eps, cos, sin, out)
        self.clock.add(perf_counter() - start)
        return out

    def kv_store(self, k: Floats, v: Floats, k_cache: Array, v_cache: Array, start: int) -> None:
        begin = perf_counter()
        _native.kv_store(self.pool, k, v, k_cache, v_cache, start)
        self.clock.add(perf_counter() - begin)

    def attention(
        self, q: Floats, k_cache: Array, v_cache: Array, start: int, scale: float
    ) -> Floats:
        begin = perf_counter()
        out = self.scratch.take(*q.shape)
        _native.attention(self.pool, q, k_cache, v_cache, start, scale, out)
        self.clock.add(perf_counter() - begin)
        return out

    def sigmoid(self, x: Floats) -> Floats:
        # tanh does not overflow where exp(-x) would.
        half: Floats = np.tanh(x * np.float32(0.5))
        return half * np.float32(0.5) + np.float32(0.5)

    def sigmoid_gate(self, x: Floats, gate: Floats) -> None:
        start = perf_counter()
        _native.sigmoid_gate(self.pool, x, gate)
        self.clock.add(perf_counter() - start)

    def causal_conv_silu(self, u: Floats, weight: Floats, state: Floats) -> Floats:
        start = perf_counter()
        out = self.scratch.take(*u.shape)
        _native.causal_conv_silu(self.pool, u, weight, state, out)
        self.clock.add(perf_counter() - start)
        return out

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
        start = perf_counter()
        out = self.scratch.take(len(qkv), state.shape[0], state.shape[2])
        for rows, chunk in delta_spans(position, len(qkv)):
            _native.gated_delta(
                self.pool, qkv[rows], a[rows], b[rows], a_log, dt_bias, state, out[rows], chunk
            )
        self.clock.add(perf_counter() - start)
        return out

    def gated_rms_norm(self, x: Floats, gate: Floats, weight: Floats, eps: float) -> None:
        start = perf_counter()
        _native.gated_rms_norm(self.pool, x, gate, weight, eps)
        self.clock.add(perf_counter() - start)

    def route(
        self, x: Floats, gate: _native.Matrix, k: int, renormalize: bool
    ) -> tuple[Ints, Floats]:
        (logits,) = self.linear(x, gate)
        start = perf_counter()
        ids = np.empty((len(x), k), dtype=np.int32)
        weights = np.empty((len(x), k), dtype=np.float32)
        _native.softmax_topk(logits, ids, weights, renormalize, 1.0)
        self.clock.add(perf_counter() - start)
        return ids, weights

    def ffn_add(
        self,
        x: Floats,
        gate_up: _native.Matrix,
        down: _native.Matrix,
        out: Floats,
        scale: Floats | None,
    ) -> None:
        start = perf_counter()
        self._acts.assign(self.pool, x, gate_up.group)
        _native.ffn(self.pool, self._acts, gate_up, down, out, scale)
        self.clock.add(perf_counter() - start)

    def experts(self, x: Floats, shape: ExpertShape, rows: int) -> CpuExpertCall:
        return CpuExpertCall(self, x, shape, rows)

    def combine(self, rows: Floats, weights: Floats, out: Floats) -> None:
        start = perf_counter()
        _native.combine(self.pool, rows, weights, out)
        self.clock.add(perf_counter() - start)


@functools.lru_cache(maxsize=8)
def _expert_layout(shape: ExpertShape) -> _native.ExpertLayout:
    return _native.ExpertLayout(
        shape.gate_up.name,
        shape.gate_up.group,
        shape.down.name,
        shape.down.group,
        shape.hidden_size,
        shape.intermediate_size,
        shape.down_offset,
    )


class CpuExpertCall:
    """flashmoe.ops.base.ExpertCall: x is quantised once, then expert after expert reads it."""

    def __init__(self, ops: CpuOps, x: Floats, shape: ExpertShape, rows: int) -> None:
        start = perf_counter()
        self._ops = ops
        self._acts = ops._expert_acts
        self._acts.assign(ops.pool, x, shape.gate_up.group)
        self._layout = _expert_layout(shape)
        self.rows = ops.scratch.take(rows, shape.hidden_size)
        ops.clock.add(perf_counter() - start)

    def run(self, addresses: NDArray[np.uint64], offsets: Ints, tokens: Ints, dests: Ints) -> None:
        start = perf_counter()
        _native.moe_ffn(
            self._ops.pool,
            self._acts,
            self._layout,
            addresses,
            offsets,
            tokens,
            dests,
            self.rows,
        )
        self._ops.clock.add(perf_counter() - start)
