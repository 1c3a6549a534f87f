"""Feed-forward parts: dense, or routed experts with a shared one computed while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from flashmoe.ops.base import Floats, Ints, Ops
from flashmoe.ops.parts import DenseMlpWeights, RouterWeights, SharedExpertWeights

Ahead = tuple[int, Ints]
"""A guess: the index of the next layer, and the ids [T, K] that it is likely to want, those of a
token in descending order of likelihood."""


class RoutedExperts(Protocol):
    """Where routed experts come from; layers know no more of caches and disks than this."""

    @property
    def wants_ahead(self) -> bool:
        """Whether `begin` has a use for `ahead`: it costs a router more per layer."""

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> Any:
        """Start to fetch the experts ids [T, K] of a layer -> a ticket for `finish`."""

    def finish(self, ticket: Any, x: Floats, weights: Floats, out: Floats) -> None:
        """out [T, H] += sum over k of weights[t, k] * expert ids[t, k] (x[t])."""


@dataclass(frozen=True)
class DenseMlp:
    """A layer without experts. Step by step: ops/plain_parts.py, add_dense_mlp."""

    weights: DenseMlpWeights

    def add_to(
        self, h: Floats, experts: RoutedExperts, ops: Ops, following: SparseMoe | None = None
    ) -> None:
        """h [T, H] += SwiGLU(norm(h)); the rest is for layers with experts."""
        ops.add_dense_mlp(h, self.weights)


@dataclass(frozen=True)
class SparseMoe:
    """Router over the experts; the likeliest are computed and summed.

    Step by step: ops/composed.py, norm_and_route and add_shared_expert.
    """

    layer: int
    router: RouterWeights
    shared: SharedExpertWeights | None = None

    def add_to(
        self, h: Floats, experts: RoutedExperts, ops: Ops, following: SparseMoe | None = None
    ) -> None:
        """h [T, H] += routed (and shared) experts of norm(h). following: the next layer's."""
        if following is not None and experts.wants_ahead:
            routed = ops.norm_and_route(h, self.router, following.router)
            assert routed.ids_ahead is not None
            ticket = experts.begin(self.layer, routed.ids, (following.layer, routed.ids_ahead))
        else:
            routed = ops.norm_and_route(h, self.router)
            ticket = experts.begin(self.layer, routed.ids)
        with ticket:
            if self.shared is not None:
                ops.add_shared_expert(h, routed.x, self.shared)
            ops.clock.phase = "experts"
            experts.finish(ticket, routed.x, routed.weights, h)
