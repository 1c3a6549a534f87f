"""The CPU backend: each primitive is one call of the native core, timed under the current phase.

The parts of layers are in cpu_parts.py; a forward pass uses those, and of what is here `embed` and,
where experts arrive in pieces, `experts` and `combine`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops.base import Activation, Array, ExpertShape, Floats, Ints
from flashmoe.ops.clock import PhaseClock
from flashmoe.ops.cpu_parts import CpuParts
from flashmoe.ops.host import HostArrays
from flashmoe.ops.parts import SigmoidRouting, delta_spans
from flashmoe.ops.plain_parts import PlainParts
from flashmoe.ops.scratch import Scratch
from flashmoe.ops.threads import thread_errors
from flashmoe.quant import Format

if TYPE_CHECKING:
    from collections.abc import Sequence


class CpuOps(CpuParts, PlainParts, HostArrays):
    """flashmoe.ops.base.Ops on native kernels of one isa, with a thread pool of its own."""

    def __init__(self, threads: int, isa: str = "auto") -> None:
        super().__init__()
        self._isa = isa
        self.clock = PhaseClock()
        with thread_errors("threads", threads):
            self.pool = _native.Pool(threads)
        self.scratch = Scratch()
        self._acts = _native.Activations()
        self._expert_acts = _native.Activations()
        self._embedded = np.empty((0, 0), dtype=np.float32)
        self._expert_rows = Scratch()

    def begin_pass(self) -> None:
        # The choice is the process's, and another model may have chosen differently meanwhile.
        _native.select_isa(self._isa)
        self.clock.take()

    def begin_layer(self) -> None:
        self.scratch.reset()

    def release_scratch(self) -> None:
        self.scratch.release()
        self._acts, self._expert_acts = _native.Activations(), _native.Activations()

    def matrix(self, fmt: Format, rows: int, cols: int, data: NDArray[np.uint8]) -> _native.Matrix:
        return _native.Matrix(fmt.name, fmt.group, rows, cols, data)

    def empty(self, *shape: int) -> Floats:
        return self.scratch.take(*shape)

    def concat(self, parts: Sequence[Floats]) -> Floats:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def embed(self, table: _native.Matrix, ids: Ints) -> Floats:
        start = perf_counter()
        if self._embedded.shape != (len(ids), table.cols):
            self._embedded = np.empty((len(ids), table.cols), dtype=np.float32)
        _native.embed(self.pool, table, ids, self._embedded)
        self.clock.add(perf_counter() - start)
        return self._embedded

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
        sizes = {matrix.group for matrix in matrices if matrix.group}
        if len(sizes) > 1:  # x is quantised by one size at a time
            for matrix, out in zip(matrices, outs, strict=True):
                self._linear(x, [matrix], [out], accumulate)
            return
        self._acts.assign(self.pool, x, max(sizes, default=0))
        _native.linear(self.pool, self._acts, list(matrices), list(outs), accumulate)

    def head_linear(self, x: Floats, matrix: _native.Matrix, out: Floats) -> None:
        start = perf_counter()
        self._acts.assign(self.pool, x.reshape(-1, matrix.cols), matrix.group)
        _native.head_linear(self.pool, self._acts, matrix, out)
        self.clock.add(perf_counter() - start)

    def add_bias(self, x: Floats, bias: Floats) -> None:
        start = perf_counter()
        x += bias
        self.clock.add(perf_counter() - start)

    def head_norm_rope(
        self,
        x: Floats,
        weight: Floats | None,
        eps: float,
        cos: Floats,
        sin: Floats,
        out: Floats | None = None,
    ) -> Floats:
        start = perf_counter()
        if out is None:
            out = self.scratch.take(*x.shape)
        _native.head_norm_rope(self.pool, x, weight, eps, cos, sin, out)
        self.clock.add(perf_counter() - start)
        return out

    def kv_store(
        self, k: Floats, v: Floats, k_cache: Array, v_cache: Array, start: int, window: int = 0
    ) -> None:
        begin = perf_counter()
        _native.kv_store(self.pool, k, v, k_cache, v_cache, start, window)
        self.clock.add(perf_counter() - begin)

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
        begin = perf_counter()
        out = self.scratch.take(*q.shape[:2], v_cache.shape[2])
        _native.attention(self.pool, q, k_cache, v_cache, start, scale, out, window, sinks)
        self.clock.add(perf_counter() - begin)
        return out

    def index_topk(self, q: Floats, weights: Floats, keys: Array, seen: Ints, k: int) -> Ints:
        start = perf_counter()
        ids = np.empty((len(q), k), dtype=np.int32)
        _native.index_topk(self.pool, q, weights, keys, seen, ids)
        self.clock.add(perf_counter() - start)
        return ids

    def sigmoid(self, x: Floats) -> Floats:
        out = self.scratch.take(*x.shape)
        _native.sigmoid(x, out)
        return out

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
        self,
        x: Floats,
        gate: _native.Matrix,
        k: int,
        renormalize: bool,
        bias: Floats | None = None,
        sigmoid: SigmoidRouting | None = None,
    ) -> tuple[Ints, Floats]:
        (logits,) = self.linear(x, gate)
        start = perf_counter()
        if bias is not None:
            logits += bias
        ids = np.empty((len(x), k), dtype=np.int32)
        weights = np.empty((len(x), k), dtype=np.float32)
        if sigmoid is None:
            _native.softmax_topk(logits, ids, weights, renormalize, 1.0)
        else:
            s = sigmoid
            groups = (s.correction, s.groups, s.chosen_groups)
            _native.sigmoid_topk(logits, *groups, ids, weights, renormalize, s.scale)
        self.clock.add(perf_counter() - start)
        return ids, weights

    def ffn_add(
        self,
        x: Floats,
        gate_up: _native.Matrix,
        down: _native.Matrix,
        out: Floats,
        scale: Floats | None,
        activation: Activation = "swiglu",
    ) -> None:
        start = perf_counter()
        self._acts.assign(self.pool, x, gate_up.group)
        _native.ffn(self.pool, self._acts, gate_up, down, out, scale, activation)
        self.clock.add(perf_counter() - start)

    @property
    def scratch_bytes(self) -> int:
        """The most that temporaries took so far, without the residual."""
        return self.part_bytes + self.scratch.peak_bytes + self._expert_rows.nbytes

    def expert_rows(self, rows: int, hidden: int) -> Floats:
        """Memory for the results of one layer's experts, until the next layer's."""
        self._expert_rows.reset()
        return self._expert_rows.take(rows, hidden)

    def experts(self, x: Floats, shape: ExpertShape, rows: int) -> CpuExpertCall:
        return CpuExpertCall(self, x, shape, rows)

    def combine(self, rows: Floats, weights: Floats, out: Floats) -> None:
        start = perf_counter()
        _native.combine(self.pool, rows, weights, out)
        self.clock.add(perf_counter() - start)


class CpuExpertCall:
    """flashmoe.ops.base.ExpertCall: x is quantised once, then expert after expert reads it."""

    def __init__(self, ops: CpuOps, x: Floats, shape: ExpertShape, rows: int) -> None:
        start = perf_counter()
        self._ops = ops
        self._acts = ops._expert_acts
        self._acts.assign(ops.pool, x, shape.gate_up.group)
        self._layout = ops.layout.of(shape)
        self.rows = ops.expert_rows(rows, shape.hidden_size)
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
