"""DeepSeek-V4's attention: a window of keys, and compressed entries for what lies before it.

All heads share one key per position, which is its value too. Layers differ in what they add to the
window: nothing, entries of many positions each, all of which a token sees, or entries of few
positions, of which an indexer picks `topk`. Composed of primitives, on the host only.

A token's keys are put side by side before attention looks at them, oldest first, then the entries:
the result does not depend on how a prompt was cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.layers.compressor import CompressorWeights, compress, parts_of, rotate_last
from flashmoe.layers.hyper import StreamWeights, enter, leave
from flashmoe.layers.state import (
    CompressedCache,
    Entries,
    StateMemory,
    Step,
    cache_positions,
)
from flashmoe.ops.base import Array, Floats, Ints, Matrix, Ops
from flashmoe.ops.parts import Span, window_pieces


@dataclass(frozen=True, eq=False)
class EntryIndexerWeights:
    """What picks entries: Hi heads of Di dimensions. q [Hi * Di, Q], of the low-rank queries."""

    compressor: CompressorWeights
    q: Matrix
    head_weights: Matrix  # [Hi, H]
    topk: int

    @property
    def dim(self) -> int:
        """Di."""
        return len(self.compressor.norm)

    @property
    def scale(self) -> float:
        """What head weights are multiplied by: 1 / sqrt(Hi), and 1 / sqrt(Di) of the scores."""
        return float((self.head_weights.rows * self.dim) ** -0.5)


@dataclass(frozen=True, eq=False)
class CompressedAttentionWeights:
    """Hq heads of D dimensions, the last of which are rotated; o_a: G maps of their own, each of
    Hq / G heads."""

    streams: StreamWeights
    norm: Floats  # [H], of the part's input
    q_a: Matrix  # [Q, H]
    q_a_norm: Floats  # [Q]
    q_b: Matrix  # [Hq * D, Q]
    q_norm: Floats  # [D], ones
    kv: Matrix  # [D, H]
    kv_norm: Floats  # [D]
    sinks: Floats  # [Hq]
    o_a: Matrix  # [G * R, Hq * D / G]
    o_b: Matrix  # [H, G * R]
    groups: int
    window: int
    eps: float
    compressor: CompressorWeights | None
    indexer: EntryIndexerWeights | None


@dataclass(frozen=True)
class CompressedAttention:
    """h = streams of o_b(o_a(softmax(q k^T / sqrt(D)) k)), k normed, rotated, and rotated back in
    the result. rope: which of the model's rotary tables the layer uses."""

    weights: CompressedAttentionWeights
    layer: int
    rope: int

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> CompressedCache:
        """An empty cache for one sequence."""
        w = self.weights

        def entries(compressor: CompressorWeights | None) -> Entries | None:
            if compressor is None:
                return None
            tail = compressor.kept, 2 * compressor.values.rows
            size = context_length // compressor.ratio, len(compressor.norm)
            return Entries(size, compressor.ratio, tail, kv_dtype, memory)

        rows = cache_positions(context_length, w.window), len(w.kv_norm)
        index = None if w.indexer is None else w.indexer.compressor
        return CompressedCache(rows, kv_dtype, memory, entries(w.compressor), entries(index))

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, S * H]: attention of norm(the streams' mixture) goes back into the streams."""
        ops.begin_layer()
        ops.clock.phase = "attention"
        w, (cos, sin) = self.weights, step.ropes[self.rope]
        mixed = enter(h, w.streams)
        x = ops.rms_norm(mixed.x, w.norm, w.eps)
        low, kv = ops.linear(x, w.q_a, w.kv)
        low, kv = ops.rms_norm(low, w.q_a_norm, w.eps), ops.rms_norm(kv, w.kv_norm, w.eps)
        rotate_last(kv, cos, sin)
        spans = step.spans(self.layer, CompressedCache)
        self._compress(x, spans, ops)
        chosen = self._choose(x, low, (cos, sin), spans, ops)
        heads = self._queries(low, (cos, sin), ops)
        for span in spans:
            self._attend(heads, kv, span, chosen, ops)
        rotate_last(heads, cos, -sin)
        leave(h, self._output(heads, ops), mixed)

    def _queries(self, low: Floats, rope: tuple[Floats, Floats], ops: Ops) -> Floats:
        """low [T, Q] -> [T, Hq, D], normed and rotated."""
        w, dim = self.weights, len(self.weights.kv_norm)
        (q,) = ops.linear(low, w.q_b)
        heads = ops.rms_norm(q.reshape(-1, dim), w.q_norm, w.eps).reshape(len(low), -1, dim)
        rotate_last(heads, *rope)
        return heads

    def _output(self, out: Floats, ops: Ops) -> Floats:
        """Attention's result [T, Hq, D] -> [T, H]."""
        w, tokens = self.weights, len(out)
        low = ops.empty(tokens, w.groups, w.o_a.rows // w.groups)
        ops.head_linear(out.reshape(tokens, w.groups, -1), w.o_a, low)
        (y,) = ops.linear(low.reshape(tokens, -1), w.o_b)
        return y

    def _compress(self, x: Floats, spans: list[Span[CompressedCache]], ops: Ops) -> None:
        """Brings the entries of every sequence up to date."""
        w = self.weights
        index = None if w.indexer is None else w.indexer.compressor
        for compressor, which in ((w.compressor, "entries"), (index, "index_entries")):
            if compressor is None:
                continue
            values, gates = ops.linear(x, compressor.values, compressor.gates)
            for begin, end, start, state in spans:
                rows = slice(begin, end)
                parts = parts_of(compressor, values[rows], gates[rows], start)
                compress(compressor, parts, start, getattr(state, which), ops)

    def _choose(
        self,
        x: Floats,
        low: Floats,
        rope: tuple[Floats, Floats],
        spans: list[Span[CompressedCache]],
        ops: Ops,
    ) -> Ints | None:
        """Entries int32 [T, topk] of rows that see more than topk of them; None if none does."""
        indexer = self.weights.indexer
        if indexer is None or all(self._first_choosing(s) == s.end for s in spans):
            return None
        (weights,) = ops.linear(x, indexer.head_weights)
        (q,) = ops.linear(low, indexer.q)
        q = q.reshape(len(x), -1, indexer.dim)
        rotate_last(q, *rope)
        weights = weights * np.float32(indexer.scale)
        chosen = np.empty((len(x), indexer.topk), dtype=np.int32)
        for span in spans:
            rows = slice(self._first_choosing(span), span.end)
            seen = self._seen(span)[rows.start - span.begin :]
            index = span.state.index_entries
            assert index is not None
            chosen[rows] = ops.index_topk(q[rows], weights[rows], index.rows, seen, indexer.topk)
        return chosen

    def _seen(self, span: Span[CompressedCache]) -> Ints:
        """How many entries each row of a span sees: those of windows that are over."""
        assert self.weights.compressor is not None
        after = np.arange(span.start, span.start + span.end - span.begin, dtype=np.int32) + 1
        return np.asarray(after // self.weights.compressor.ratio, dtype=np.int32)

    def _first_choosing(self, span: Span[CompressedCache]) -> int:
        """The first row of a span that sees more than topk entries; its end if none does."""
        assert self.weights.indexer is not None
        return span.begin + int((self._seen(span) <= self.weights.indexer.topk).sum())

    def _attend(
        self, heads: Floats, kv: Floats, span: Span[CompressedCache], chosen: Ints | None, ops: Ops
    ) -> None:
        """Of a sequence's rows of heads [T, Hq, D] each query makes room for its result."""
        begin, end, start, state = span
        scale, ring = float(kv.shape[1] ** -0.5), state.rows.shape[1]
        for first, last in window_pieces(begin, end, self.weights.window):
            at = np.arange(start + first - begin, start + last - begin)
            state.rows[0, at % ring] = kv[first:last]
            for row, position in zip(range(first, last), at, strict=True):
                picked = None if chosen is None else chosen[row]
                keys = self._keys(state, int(position), picked)[None]
                one, last_key = heads[row : row + 1], keys.shape[1] - 1
                one[...] = ops.attention(one, keys, keys, last_key, scale, 0, self.weights.sinks)

    def _keys(self, state: CompressedCache, position: int, picked: Ints | None) -> Array:
        """What a token sees: the window, oldest first, then entries -> [n, D]."""
        window, ring = self.weights.window, state.rows.shape[1]
        places = np.arange(max(position + 1 - window, 0), position + 1) % ring
        rows: Array = state.rows[0].take(places, axis=0)
        if state.entries is None:
            return rows
        entries = state.entries
        seen = (position + 1) // entries.ratio
        if picked is not None and seen > len(picked):
            return np.concatenate([rows, entries.rows.take(picked, axis=0)])
        return np.concatenate([rows, entries.rows[:seen]])
