"""The routed experts of a layer, with an optional shared expert computed while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from flashmoe.ops.base import Floats, Ints, Matrix, Ops

Ahead = tuple[int, Ints]
"""A guess: the index of the next layer, and the ids [T, K] that it is likely to want, those of a
token in descending order of likelihood."""


class RoutedExperts(Protocol):
    """Where routed experts come from; layers know no more of caches and disks than this.

    wants_ahead: whether `begin` has a use for `ahead`.
    """

    @property
    def wants_ahead(self) -> bool: ...

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> Any:
        """Start to fetch the experts ids [T, K] of a layer -> a ticket for `finish`."""

    def finish(self, ticket: Any, x: Floats, weights: Floats, out: Floats) -> None:
        """out [T, H] += sum over k of weights[t, k] * expert ids[t, k] (x[t])."""


@dataclass(frozen=True)
class SharedExpert:
    """A SwiGLU that every token uses, scaled by sigmoid(x . gate)."""

    gate_up: Matrix  # [2 I, H], rows of gate and up alternating in blocks of 8
    down: Matrix  # [H, I]
    gate: Matrix  # [1, H]

    def add_to(self, h: Floats, x: Floats, ops: Ops) -> None:
        """h [T, H] += sigmoid(x . gate) * SwiGLU(x)."""
        ops.clock.phase = "shared"
        (logit,) = ops.linear(x, self.gate)
        ops.ffn_add(x, self.gate_up, self.down, h, ops.sigmoid(logit).reshape(-1))


@dataclass(frozen=True)
class SparseMoe:
    """Softmax router over num_experts, the num_experts_per_tok likeliest computed and summed."""

    layer: int
    gate: Matrix  # [E, H]
    num_experts_per_tok: int
    norm_topk_prob: bool
    shared: SharedExpert | None = None

    def guess(self, x: Floats, ops: Ops) -> Ahead:
        """What this layer is likely to want, from an x [T, H] that is not yet its input."""
        ops.clock.phase = "router"
        ids, _ = ops.route(x, self.gate, self.num_experts_per_tok, self.norm_topk_prob)
        return self.layer, ids

    def add_to(
        self,
        h: Floats,
        x: Floats,
        experts: RoutedExperts,
        ops: Ops,
        ahead: Ahead | None = None,
    ) -> None:
        """h [T, H] += routed (and shared) experts of the normed input x [T, H].

        ahead: what the next layer is likely to want.
        """
        ops.clock.phase = "router"
        ids, weights = ops.route(x, self.gate, self.num_experts_per_tok, self.norm_topk_prob)
        ticket = experts.begin(self.layer, ids, ahead)
        with ticket:
            if self.shared is not None:
                self.shared.add_to(h, x, ops)
            ops.clock.phase = "experts"
            experts.finish(ticket, x, weights, h)
