"""DeepSeek-V4's experts: scores sqrt(softplus(logit)); experts by score, or by a table of tokens.

In the layers in front the table says which experts a token uses: they are known before the layer
runs, so that a guess at them is never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.layers.hyper import StreamWeights, enter, leave
from flashmoe.layers.moe import Ahead, RoutedExperts, Routes
from flashmoe.ops.base import Floats, Ints, Matrix, Ops
from flashmoe.ops.parts import RouterWeights


@dataclass(frozen=True, eq=False)
class StreamedMoeWeights:
    """A shared expert, and how experts are chosen: exactly one of table and correction is there.

    table int32 [vocab_size, K]: the experts of each token. correction [E]: added to scores for the
    choice. scale: what the weights, divided by their sum, are multiplied by.
    """

    streams: StreamWeights
    gate_up: Matrix  # [2 I, H], rows of gate and up alternating in blocks of 8
    down: Matrix  # [H, I]
    table: Ints | None
    correction: Floats | None
    scale: float


@dataclass(frozen=True)
class StreamedMoe:
    """Routed experts and a shared one of norm(the streams' mixture), back into the streams.

    router: its norm and gate; how scores are made of logits is said above.
    """

    layer: int
    router: RouterWeights
    weights: StreamedMoeWeights

    def add_to(
        self,
        h: Floats,
        experts: RoutedExperts,
        ops: Ops,
        following: Routes | None = None,
        ids: Ints | None = None,
    ) -> None:
        """h [T, S * H] of the tokens ids [T]; following: the next layer's experts."""
        assert ids is not None
        ops.begin_layer()
        ops.clock.phase = "router"
        w, mixed = self.weights, enter(h, self.weights.streams)
        x = ops.rms_norm(mixed.x, self.router.norm, self.router.eps)
        chosen, weights = self._route(x, ids, ops)
        ahead = self._guess(following, h, ids, ops) if experts.wants_ahead else None
        ticket = experts.begin(self.layer, chosen, ahead)
        with ticket:
            ops.clock.phase = "shared"
            y = ops.empty(*x.shape)
            y[...] = np.float32(0)
            ops.ffn_add(x, w.gate_up, w.down, y, None, "swiglu_limited")
            ops.clock.phase = "experts"
            experts.finish(ticket, x, weights, y)
        leave(h, y, mixed)

    def likely(self, h: Floats, ids: Ints, ops: Ops) -> Ints:
        """What this layer would choose of the streams h as they are before the layer in front of
        it is done: exact where a table says it."""
        if self.weights.table is not None:
            return self._listed(self.weights.table, ids)
        x = ops.rms_norm(enter(h, self.weights.streams).x, self.router.norm, self.router.eps)
        return self._best(self._scores(x, ops))

    def _guess(self, following: Routes | None, h: Floats, ids: Ints, ops: Ops) -> Ahead | None:
        if not isinstance(following, StreamedMoe):
            return None
        return following.layer, following.likely(h, ids, ops)

    def _route(self, x: Floats, ids: Ints, ops: Ops) -> tuple[Ints, Floats]:
        """x [T, H] of the tokens ids -> experts and their weights [T, K]."""
        table, scores = self.weights.table, self._scores(x, ops)
        chosen = self._best(scores) if table is None else self._listed(table, ids)
        picked = np.take_along_axis(scores, chosen, axis=1)
        total = picked.sum(axis=1, keepdims=True) + 1e-20
        return chosen, (picked * (self.weights.scale / total)).astype(np.float32)

    def _scores(self, x: Floats, ops: Ops) -> np.ndarray:
        """float64 [T, E]."""
        (logits,) = ops.linear(x, self.router.gate)
        return np.sqrt(np.logaddexp(0.0, logits.astype(np.float64)))

    def _best(self, scores: np.ndarray) -> Ints:
        """The K best by corrected score, the best first; of equal ones the first."""
        assert self.weights.correction is not None
        order = np.argsort(-(scores + self.weights.correction), axis=1, kind="stable")
        return self._whole(order[:, : self.router.num_experts_per_tok])

    def _listed(self, table: Ints, ids: Ints) -> Ints:
        return self._whole(table[ids, : self.router.num_experts_per_tok])

    @staticmethod
    def _whole(ids: np.ndarray) -> Ints:
        return np.ascontiguousarray(ids, dtype=np.int32)
