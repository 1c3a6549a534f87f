"""Feed-forward parts: dense, or routed experts with a shared one computed while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from flashmoe.layers.choice import Chooser
from flashmoe.ops.base import Floats, Ints, Ops, Residents
from flashmoe.ops.parts import DenseMlpWeights, Routed, RouterWeights, SharedExpertWeights

Ahead = tuple[int, Ints]
"""A guess: the index of the next layer, and the ids [T, K] that it is likely to want, those of a
token in descending order of likelihood."""


class Routes(Protocol):
    """A layer with routed experts, as the one before it sees it: `router` can be asked ahead."""

    @property
    def layer(self) -> int: ...
    @property
    def router(self) -> RouterWeights: ...


class RoutedExperts(Protocol):
    """Where routed experts come from; layers know no more of caches and disks than this."""

    @property
    def residents(self) -> Residents | None:
        """Where a backend may look experts up by itself; None: `begin` must hear of every layer."""

    @property
    def wants_ahead(self) -> bool:
        """Whether `begin` has a use for `ahead`: it costs a router more per layer."""

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> Any:
        """Start to fetch the experts ids [T, K] of a layer -> a ticket for `finish`."""

    def finish(self, ticket: Any, x: Floats, weights: Floats, out: Floats) -> None:
        """out [T, H] += sum over k of weights[t, k] * expert ids[t, k] (x[t])."""


def guess_of(ahead: Routes | None, routed: Routed) -> Ahead | None:
    """What the layer `ahead` is likely to want, where its router was asked."""
    if ahead is None:
        return None
    assert routed.ids_ahead is not None
    return ahead.layer, routed.ids_ahead


@dataclass(frozen=True)
class DenseMlp:
    """A layer without experts. Step by step: ops/plain_parts.py, add_dense_mlp."""

    weights: DenseMlpWeights

    def add_to(
        self,
        h: Floats,
        experts: RoutedExperts,
        ops: Ops,
        following: Routes | None = None,
        ids: Ints | None = None,
    ) -> None:
        """h [T, H] += SwiGLU(norm(h)); the rest is for layers with experts."""
        ops.add_dense_mlp(h, self.weights)


@dataclass(frozen=True)
class SparseMoe:
    """Router over the experts; the likeliest are computed and summed.

    Step by step: ops/composed.py, norm_and_route and add_shared_expert. chooser: lossy rules, where
    the user asked for them.
    """

    layer: int
    router: RouterWeights
    shared: SharedExpertWeights | None = None
    chooser: Chooser | None = None

    def add_to(
        self,
        h: Floats,
        experts: RoutedExperts,
        ops: Ops,
        following: Routes | None = None,
        ids: Ints | None = None,
    ) -> None:
        """h [T, H] += routed (and shared) experts of norm(h). following: the next layer's."""
        # Rules change what the next layer will want: no guesses then.
        ahead = following if experts.wants_ahead and self.chooser is None else None
        routed = self._route(h, experts.residents, ops, ahead)
        if routed is None:
            return
        ticket = experts.begin(self.layer, routed.ids, guess_of(ahead, routed))
        with ticket:
            if self.shared is not None:
                ops.add_shared_expert(h, routed.x, self.shared)
            ops.clock.phase = "experts"
            experts.finish(ticket, routed.x, routed.weights, h)

    def _route(
        self, h: Floats, residents: Residents | None, ops: Ops, ahead: Routes | None
    ) -> Routed | None:
        """None: nothing is left to do, the token's experts were all resident."""
        if self.chooser is not None:
            return self.chooser.route(h, ops)
        if residents is not None and len(h) == 1:
            return ops.route_or_add_token(h, self.router, self.shared, self.layer, residents)
        return ops.norm_and_route(h, self.router, None if ahead is None else ahead.router)
