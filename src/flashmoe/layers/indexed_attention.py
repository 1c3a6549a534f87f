"""Latent attention to a choice of keys: DeepSeek Sparse Attention.

DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556, section 2.1). A lightning indexer scores every key
for a query; beyond `topk` keys, attention looks at the topk best only. Up to there it is plain
latent attention. The published indexer's Hadamard transform turns queries and keys alike, which
changes no score, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.layers.state import IndexedCache, StateMemory, Step
from flashmoe.ops.base import Floats, Ints, Matrix, Ops
from flashmoe.ops.parts import LATENT_EPS, LatentAttentionWeights, Span
from flashmoe.ops.plain_parts import add_latent_values, latent_heads

# Of the layer norm of keys, in published implementations.
NORM_EPS = np.float32(1e-6)


@dataclass(frozen=True, eq=False)
class IndexerWeights:
    """Hi heads of Di dimensions, the first of which are rotated, in half-split order."""

    q: Matrix  # [Hi * Di, Q], of the low-rank queries of the attention
    k: Matrix  # [Di, H]
    k_norm: Floats  # [Di]
    k_bias: Floats  # [Di]
    head_weights: Matrix  # [Hi, H]

    @property
    def scale(self) -> float:
        """What head weights are multiplied by: 1 / sqrt(Hi), and 1 / sqrt(Di) of the scores."""
        return float((self.head_weights.rows * self.k.rows) ** -0.5)


@dataclass(frozen=True)
class IndexedLatentAttention:
    """LatentAttention over the topk keys that the indexer prefers.

    indexer None: the choice of the last layer before that has one.
    """

    weights: LatentAttentionWeights
    indexer: IndexerWeights | None
    topk: int
    layer: int

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> IndexedCache:
        """An empty cache for one sequence."""
        w, index_dim = self.weights, self.indexer.k.rows if self.indexer else 0
        return IndexedCache(context_length, w.rank, w.rope_dim, index_dim, kv_dtype, memory)

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += attention of norm(h)."""
        ops.begin_layer()
        ops.clock.phase = "attention"
        w, spans = self.weights, step.spans(self.layer, IndexedCache)
        if self.indexer is not None:
            step.carried["chosen"] = self._choose(self.indexer, h, step, ops)
        q, latent, k_rope = latent_heads(ops, h, w, step.rope)
        outs: list[Floats] = []
        for begin, end, start, cache in spans:
            ops.kv_store(latent[begin:end], k_rope[begin:end], cache.latent, cache.rope, start)
            span = Span(begin, end, start, cache)
            outs += self._attend(q, span, step.carried["chosen"], ops)
        add_latent_values(ops, h, w, ops.concat(outs))

    def _attend(
        self, q: Floats, span: Span[IndexedCache], chosen: Ints, ops: Ops
    ) -> Iterator[Floats]:
        """Results of a sequence's rows: those that see few keys together, then one by one."""
        begin, end, start, cache = span
        w, first = self.weights, self._first_choosing(span)
        if first > begin:
            yield ops.attention(q[begin:first], cache.rows, cache.latent, start, w.scale)
        for row in range(first, end):
            kept = np.take(cache.rows, chosen[row], axis=1)  # [1, topk, R + P]
            values = kept[..., : w.rank]
            yield ops.attention(q[row : row + 1], kept, values, self.topk - 1, w.scale)

    def _first_choosing(self, span: Span[IndexedCache]) -> int:
        """The first row of a span that sees more than topk keys; its end if none does."""
        return min(max(span.begin, span.begin + self.topk - span.start), span.end)

    def _choose(self, indexer: IndexerWeights, h: Floats, step: Step, ops: Ops) -> Ints:
        """Keeps the indexer's keys -> int32 [T, topk], of rows that see more than topk keys."""
        w, spans = self.weights, step.spans(self.layer, IndexedCache)
        x = ops.rms_norm(h, w.norm, w.eps)
        keys = _layer_norm(ops.linear(x, indexer.k)[0], indexer.k_norm, indexer.k_bias)
        keys = ops.head_norm_rope(keys[:, None], None, LATENT_EPS, *step.rope)[:, 0]
        for begin, end, start, cache in spans:
            cache.index_keys[start : start + end - begin] = keys[begin:end]
        chosen = np.empty((len(h), self.topk), dtype=np.int32)
        if all(self._first_choosing(span) == span.end for span in spans):
            return chosen
        q, weights = self._index_queries(indexer, x, step.rope, ops)
        for span in spans:
            rows = slice(self._first_choosing(span), span.end)
            seen = np.arange(rows.start, rows.stop, dtype=np.int32) + (span.start - span.begin + 1)
            kept = span.state.index_keys
            chosen[rows] = ops.index_topk(q[rows], weights[rows], kept, seen, self.topk)
        return chosen

    def _index_queries(
        self, indexer: IndexerWeights, x: Floats, rope: tuple[Floats, Floats], ops: Ops
    ) -> tuple[Floats, Floats]:
        """x [T, H] -> queries [T, Hi, Di] and head weights [T, Hi]."""
        w = self.weights
        assert w.q_a_norm is not None
        low, weights = ops.linear(x, w.q_a_proj, indexer.head_weights)
        (q,) = ops.linear(ops.rms_norm(low, w.q_a_norm, LATENT_EPS), indexer.q)
        heads = q.reshape(len(x), -1, indexer.k.rows)
        turned = ops.head_norm_rope(heads, None, LATENT_EPS, *rope)
        return turned, weights * np.float32(indexer.scale)


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """x [T, D] to mean 0 and variance 1 in each row, times weight plus bias."""
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normed: Floats = centred / np.sqrt(variance + NORM_EPS) * weight + bias
    return normed
