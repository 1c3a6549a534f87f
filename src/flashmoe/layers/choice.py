"""Which of the experts that a router prefers are computed, under lossy rules (routing.py)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops.base import Floats, Ints, Ops
from flashmoe.ops.parts import Routed, RouterWeights
from flashmoe.routing import RoutingOptions

Mask = NDArray[np.bool_]
# (layer, ids [n]) -> which of these experts are in memory.
InMemory = Callable[[int, Ints], Mask]

# Candidates beyond the K chosen: those further down the list have too little weight to matter.
_CANDIDATES = 4


@dataclass(frozen=True, eq=False)
class Chooser:
    """The rules for one layer. number: among the layers with experts; layer: among all."""

    options: RoutingOptions
    layer: int
    number: int
    router: RouterWeights
    in_memory: InMemory

    def route(self, h: Floats, ops: Ops) -> Routed:
        """As Ops.norm_and_route, with the experts that the rules leave. One token: only those.

        Several tokens: [T, K] as ever; what is left out stands as the token's first expert with
        weight 0, which reads nothing more.
        """
        router, single = self.router, len(h) == 1
        k = router.num_experts_per_tok
        routed = ops.norm_and_route(h, self._for_one if single else self._for_many)
        look = functools.partial(self.in_memory, self.layer)
        ids, weights, keep = decided(routed.ids, routed.weights, k, self.number, self.options, look)
        if single:
            ids, weights = ids[:, keep[0]], weights[:, keep[0]]
        else:
            ids, weights = np.where(keep, ids, ids[:, :1]), np.where(keep, weights, 0)
        return Routed(routed.x, np.ascontiguousarray(ids), scaled(weights, router), None)

    # Backends bind a router to a native handle when they first see it: these must stay the same.

    @functools.cached_property
    def _for_one(self) -> RouterWeights:
        return widened(self.router, self._candidates(self.router))

    @functools.cached_property
    def _for_many(self) -> RouterWeights:
        return widened(self.router, self.router.num_experts_per_tok)

    def _candidates(self, router: RouterWeights) -> int:
        most = int(router.gate.rows)
        if router.sigmoid is not None:
            most = most // router.sigmoid.groups * router.sigmoid.chosen_groups
        return candidates(router.num_experts_per_tok, most, self.options)


def widened(router: RouterWeights, candidates: int) -> RouterWeights:
    """The same router, whose weights are not yet divided and scaled; so many of them."""
    sigmoid = router.sigmoid
    if sigmoid is not None:
        sigmoid = dataclasses.replace(sigmoid, scale=1.0)
    return dataclasses.replace(
        router, num_experts_per_tok=candidates, renormalize=False, sigmoid=sigmoid
    )


def candidates(k: int, most: int, options: RoutingOptions) -> int:
    """How many of `most` experts a single token's K are chosen from."""
    return min(most, _CANDIDATES * k) if options.margin else k


def decided(
    ids: Ints,
    weights: Floats,
    k: int,
    number: int,
    options: RoutingOptions,
    in_memory: Callable[[Ints], Mask],
) -> tuple[Ints, Floats, Mask]:
    """What the rules make of candidates [T, M] with raw weights, both by falling weight -> ids and
    weights [T, K], and which of them stay.

    number: of the layer among those with experts. in_memory: asked about a single token's ids.
    """
    resident = None
    if len(ids) == 1 and (options.margin or options.skip):
        resident = in_memory(ids[0])
        chosen = preferred(weights[0], resident, k, options)
        ids, weights, resident = ids[:, chosen], weights[:, chosen], resident[chosen]
    limit = min(k, options.per_layer[number]) if options.per_layer else k
    return ids, weights, kept(weights, resident, options, limit)


def preferred(weights: Floats, resident: Mask, k: int, options: RoutingOptions) -> Ints:
    """Places of the K experts to use, of candidates with falling weights [M], in that order."""
    score = np.where(resident, weights / np.float32(1 - options.margin), weights)
    score[: options.sacred] = np.inf
    return np.sort(np.argsort(-score, kind="stable")[:k]).astype(np.int32)


def kept(weights: Floats, resident: Mask | None, options: RoutingOptions, limit: int) -> Mask:
    """Which experts the rules leave, of weights [T, K] -> [T, K]; the first always.

    resident [K]: of a single token; None: `skip` does not apply.
    """
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-20))
    before = np.cumsum(share, axis=1) - share
    keep: Mask = (before < options.mass) & (weights >= options.ratio * weights[:, :1])
    keep[:, limit:] = False
    if resident is not None and options.skip:
        keep &= resident | (share >= options.skip / weights.shape[1])
    keep[:, 0] = True
    return keep


def scaled(weights: Floats, router: RouterWeights) -> Floats:
    """Raw weights [T, k] as the router hands them out: divided by their sum if it does that, added
    up one after the other, as native/cpu/routing does."""
    sigmoid = router.sigmoid
    scale = np.float32(1.0 if sigmoid is None else sigmoid.scale)
    if router.renormalize:
        first = np.zeros((len(weights), 1), np.float32)
        first += np.float32(0 if sigmoid is None else 1e-20)
        total = np.cumsum(np.concatenate([first, weights], axis=1), axis=1, dtype=np.float32)
        return np.ascontiguousarray(weights * (scale / total[:, -1:]), dtype=np.float32)
    return np.ascontiguousarray(weights * scale, dtype=np.float32)
