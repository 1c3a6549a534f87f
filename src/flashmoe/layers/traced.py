"""Layers of experts that tell what their router says; their results are those of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from flashmoe.layers.moe import Routes, SparseMoe
from flashmoe.layers.sandwich import SandwichMoe
from flashmoe.ops.base import Floats, Ints, Ops, Residents
from flashmoe.ops.parts import Routed, RouterWeights

# Called with layer, ids [T, K] and the scores of all experts, [n, E] of up to 64 tokens at a time;
# what it is given holds until it returns.
OnRouted = Callable[[int, Ints, Iterable[Floats]], None]

_PIECE = 64


@dataclass(frozen=True)
class TracedMoe(SparseMoe):
    """A SparseMoe whose `trace` hears of every pass."""

    trace: OnRouted = field(kw_only=True)

    def _route(
        self, h: Floats, residents: Residents | None, ops: Ops, ahead: Routes | None
    ) -> Routed:
        # Without residents no native call goes past the router's answer.
        routed = super()._route(h, None, ops, ahead)
        assert routed is not None
        return told(routed, self.layer, self.router, ops, self.trace)


@dataclass(frozen=True)
class TracedSandwichMoe(SandwichMoe):
    """A SandwichMoe whose `trace` hears of every pass."""

    trace: OnRouted = field(kw_only=True)

    def _route(self, h: Floats, ops: Ops, ahead: Routes | None) -> Routed:
        routed = super()._route(h, ops, ahead)
        return told(routed, self.layer, self.router, ops, self.trace)


def told(routed: Routed, layer: int, router: RouterWeights, ops: Ops, trace: OnRouted) -> Routed:
    """What the router said, after `trace` has heard it; its time is booked under "trace"."""
    start, ops.clock.phase = perf_counter(), "trace"
    before = ops.clock.seconds.get("trace", 0.0)
    trace(layer, routed.ids, router_scores(routed.x, router, ops))
    reported = ops.clock.seconds.get("trace", 0.0) - before
    ops.clock.add(perf_counter() - start - reported)
    return routed


def router_scores(x: Floats, router: RouterWeights, ops: Ops) -> Iterator[Floats]:
    """x [T, H], normed -> scores of all experts [n, E], n up to 64: probabilities of a softmax
    over them, or sigmoids.

    From the bits of the router's own logits; `exp` is NumPy's, so that the last bit may differ from
    that of the weights.
    """
    for begin in range(0, len(x), _PIECE):
        ops.begin_layer()  # what the router said is no scratch
        (logits,) = ops.linear(x[begin : begin + _PIECE], router.gate)
        if router.bias is not None:
            logits = logits + router.bias
        yield _sigmoids(logits) if router.sigmoid is not None else _softmax(logits)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _sigmoids(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number: the sigmoid is 0
        return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)
