"""Every part of a layer in terms of primitives: what the parts compute, step by step.

Backends inherit from `ComposedParts` and override the parts for which they have something faster;
what they put in its place gives the same bits (tests/ops/test_parts.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops.base import ExpertShape, Floats, Primitives, Residents
from flashmoe.ops.host import softcap
from flashmoe.ops.parts import (
    AttentionWeights,
    GatedDeltaWeights,
    HeadWeights,
    KvSpans,
    RecurrentSpans,
    Routed,
    RouterWeights,
    SharedExpertWeights,
    window_pieces,
)
from flashmoe.ops.plain_parts import PlainParts

# Rows that go through the head at a time: the logits of a whole chunk would be by far the largest
# temporary (512 tokens of 248320 float32 are 0.5 GB).
HEAD_ROWS = 16


def attend(
    ops: Primitives,
    qkv: tuple[Floats, Floats, Floats],
    spans: KvSpans,
    scale: float,
    window: int = 0,
    sinks: Floats | None = None,
) -> Floats:
    """q [T, Hq, D], k and v [T, Hkv, D], rotated: keys and values are kept, then attention over
    those of each sequence -> [T, Hq, D]."""
    q, k, v = qkv
    outs = []
    for begin, end, start, cache in spans:
        kept = cache.k, cache.v
        for first, last in window_pieces(begin, end, window):
            # A position on a card is not added to for nothing: that would be a kernel.
            at, rows = start + first - begin if first > begin else start, slice(first, last)
            ops.kv_store(k[rows], v[rows], *kept, at, window)
            outs.append(ops.attention(q[rows], *kept, at, scale, window, sinks))
    return ops.concat(outs)


class ComposedParts(PlainParts):
    """The layer parts of flashmoe.ops.base.Ops, for a class that has its primitives."""

    def add_attention(
        self: Primitives,
        h: Floats,
        weights: AttentionWeights,
        rope: tuple[Floats, Floats],
        spans: KvSpans,
    ) -> None:
        self.begin_layer()
        self.clock.phase = "attention"
        w, tokens = weights, len(h)
        x = self.rms_norm(h, w.norm, w.eps)
        q, k, v = self.linear(x, w.q_proj, w.k_proj, w.v_proj)
        if w.biases is not None:
            for projected, bias in zip((q, k, v), w.biases[:3], strict=True):
                self.add_bias(projected, bias)
        (whole_q, q_norm), (whole_k, k_norm) = w.split_norm(w.q_norm), w.split_norm(w.k_norm)
        q = q if whole_q is None else self.rms_norm(q, whole_q, w.eps)
        k = k if whole_k is None else self.rms_norm(k, whole_k, w.eps)
        q = q.reshape(tokens, w.num_heads, -1)  # [T, Hq, D] or [T, Hq, 2 D]
        k = k.reshape(tokens, w.num_key_value_heads, w.head_dim)
        v = v.reshape(k.shape)
        gate = q[..., w.head_dim :]
        q = self.head_norm_rope(q[..., : w.head_dim], q_norm, w.eps, *rope)
        k = self.head_norm_rope(k, k_norm, w.eps, *rope)
        out = attend(self, (q, k, v), spans, w.scale, w.window, w.sinks)  # [T, Hq, D]
        if w.gated:
            self.sigmoid_gate(out, gate)
        self.linear_add(out.reshape(tokens, -1), w.o_proj, h)
        if w.biases is not None and w.biases.o is not None:
            self.add_bias(h, w.biases.o)

    def add_gated_delta(
        self: Primitives,
        h: Floats,
        weights: GatedDeltaWeights,
        spans: RecurrentSpans,
    ) -> None:
        self.begin_layer()
        self.clock.phase = "delta"
        w = weights
        x = self.rms_norm(h, w.input_norm, w.eps)
        qkv, z, a, b = self.linear(x, w.in_proj_qkv, w.in_proj_z, w.in_proj_a, w.in_proj_b)
        outs = []
        for begin, end, start, state in spans:
            mixed = self.causal_conv_silu(qkv[begin:end], w.conv1d, state.conv)
            gates = a[begin:end], b[begin:end], w.a_log, w.dt_bias
            outs.append(self.gated_delta(mixed, *gates, state.s, start))
        out = self.concat(outs)  # [T, Hv, Dv]
        flat = out.reshape(-1, out.shape[-1])
        self.gated_rms_norm(flat, z.reshape(flat.shape), w.norm, w.eps)
        self.linear_add(out.reshape(len(h), -1), w.out_proj, h)

    def norm_and_route(
        self: Primitives, h: Floats, weights: RouterWeights, ahead: RouterWeights | None = None
    ) -> Routed:
        self.clock.phase = "router"
        w, ids_ahead = weights, None
        x = self.rms_norm(h, w.norm, w.eps)
        ids, chosen = self.route(x, w.gate, w.num_experts_per_tok, w.renormalize, w.bias, w.sigmoid)
        if ahead is not None:
            seen = self.rms_norm(h, ahead.norm, ahead.eps)
            k, how = ahead.num_experts_per_tok, (ahead.renormalize, ahead.bias, ahead.sigmoid)
            ids_ahead = self.route(seen, ahead.gate, k, *how)[0]
        return Routed(x, ids, chosen, ids_ahead)

    def add_shared_expert(
        self: Primitives, h: Floats, x: Floats, weights: SharedExpertWeights
    ) -> None:
        self.clock.phase = "shared"
        scale = None
        if weights.gate is not None:
            scale = self.sigmoid(self.linear(x, weights.gate)[0]).reshape(-1)
        self.ffn_add(x, weights.gate_up, weights.down, h, scale)

    def route_or_add_token(
        self: Primitives,
        h: Floats,
        router: RouterWeights,
        shared: SharedExpertWeights | None,
        layer: int,
        residents: Residents,
    ) -> Routed | None:
        return ComposedParts.norm_and_route(self, h, router)

    def add_token_experts(
        self: Primitives,
        h: Floats,
        x: Floats,
        shape: ExpertShape,
        addresses: NDArray[np.uint64],
        weights: Floats,
    ) -> None:
        self.clock.phase = "experts"
        count = len(addresses)
        call = self.experts(x, shape, count)
        call.run(
            addresses,
            np.arange(count + 1, dtype=np.int32),
            np.zeros(count, dtype=np.int32),
            np.arange(count, dtype=np.int32),
        )
        self.combine(call.rows, weights, h)

    def head(self: Primitives, h: Floats, weights: HeadWeights, out: Floats) -> None:
        self.clock.phase = "head"
        for begin in range(0, len(h), HEAD_ROWS):
            self.begin_layer()
            rows = slice(begin, begin + HEAD_ROWS)
            x = self.rms_norm(h[rows], weights.norm, weights.eps)
            (out[rows],) = self.linear(x, weights.lm_head)
        if weights.softcap:
            softcap(out, weights.softcap)

    def all_finite(self, x: Floats) -> bool:
        # The sum is finite only if every term is: one pass without a temporary.
        return bool(np.isfinite(np.sum(x, dtype=np.float64)))

    def release(self) -> None:
        """Nothing was bound."""
