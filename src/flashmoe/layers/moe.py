"""The routed experts of a layer, with an optional shared expert computed while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from flashmoe.ops.base import Floats, Ints, Matrix, Ops


class RoutedExperts(Protocol):
    """Where routed experts come from; layers know no more of caches and disks than this."""

    def begin(self, layer: int, ids: Ints) -> Any:
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

    def add_to(self, h: Floats, x: Floats, experts: RoutedExperts, ops: Ops) -> None:
        """h [T, H] += routed (and shared) experts of the normed input x [T, H]."""
        ops.clock.phase = "router"
        ids, weights = ops.route(x, self.gate, self.num_experts_per_tok, self.norm_topk_prob)
        ticket = experts.begin(self.layer, ids)
        with ticket:
            if self.shared is not None:
                self.shared.add_to(h, x, ops)
            ops.clock.phase = "experts"
            experts.finish(ticket, x, weights, h)
