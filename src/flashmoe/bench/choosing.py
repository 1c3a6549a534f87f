"""Lossy rules of routing on a recorded trace: what the engine's own code makes of its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashmoe.bench.traces import Trace, Visit, wanted
from flashmoe.errors import UsageError
from flashmoe.experts.trace_format import NO_EXPERT, TraceHeader
from flashmoe.layers.choice import InMemory, candidates, decided
from flashmoe.ops.base import Floats, Ints
from flashmoe.ops.reference_layers import grouped_topk
from flashmoe.routing import RoutingOptions

Chooser = Callable[[int, InMemory], Visit]
"""(index of a visit, what is in memory) -> the visit as the rules have it."""


def check_rules(trace: Trace, options: RoutingOptions) -> None:
    """Raises UsageError for rules that the trace cannot answer."""
    if options == RoutingOptions():
        return
    if trace.recorded is None:
        raise UsageError(
            "the trace has no router probabilities",
            where=f"--routing {options.lossy}",
            expected="a trace that flashmoe recorded",
            got=trace.name,
            hint="Record one: flashmoe run --trace FILE MODEL PROMPT",
        )
    header = trace.recorded.header
    if options.k is not None and options.k > header.num_experts_per_tok:
        expected = f"at most {header.num_experts_per_tok}, the model's own"
        raise UsageError("too many experts", where="routing: k", expected=expected, got=options.k)
    if options.per_layer and len(options.per_layer) != len(header.layers):
        raise UsageError(
            "another number of layers",
            where="routing: per_layer",
            expected=f"{len(header.layers)} counts",
            got=len(options.per_layer),
        )


def asks_the_cache(options: RoutingOptions) -> bool:
    """Whether what the rules choose depends on what is in memory."""
    return bool(options.margin or options.skip)


def ruled(trace: Trace, options: RoutingOptions) -> Trace:
    """The trace as it were under rules that do not look at the cache, with the mass of every
    visit; without rules its own ids."""
    if trace.recorded is None:
        return trace
    recorded = trace.recorded.header
    if options == RoutingOptions():
        visits = tuple(_as_recorded(visit, recorded) for visit in trace.visits)
    else:
        choose = chooser(trace, options)
        none = lambda layer, ids: np.zeros(len(ids), dtype=bool)  # noqa: E731 - never asked
        visits = tuple(choose(index, none) for index in range(len(trace.visits)))
    return dataclasses.replace(trace, visits=visits)


def chooser(trace: Trace, options: RoutingOptions) -> Chooser:
    """Prepares every visit of a recorded trace for rules."""
    assert trace.recorded is not None, "there are no scores"
    header = trace.recorded.header
    prepared = [_prepare(visit, header, options) for visit in trace.visits]
    return lambda index, in_memory: prepared[index].choose(options, in_memory)


def _as_recorded(visit: Visit, header: TraceHeader) -> Visit:
    scores = _scores(visit)
    widest = max(part.ids.shape[1] for part in visit.rows)
    ids = np.concatenate([_padded(part.ids, widest) for part in visit.rows]).astype(np.int32)
    there = ids != NO_EXPERT
    kept = np.take_along_axis(scores, np.where(there, ids, 0), axis=1) * there
    return dataclasses.replace(visit, mass=_mass(kept, _own_sum(visit, scores, header)))


@dataclass(frozen=True)
class _Prepared:
    """A visit's candidates [T, M] with their scores, by rank; own [T]: the sum of scores of the
    router's own K."""

    visit: Visit
    number: int
    k: int
    ids: Ints
    scores: Floats
    own: Floats

    def choose(self, options: RoutingOptions, in_memory: InMemory) -> Visit:
        ids, scores, keep = decided(
            self.ids,
            self.scores,
            self.k,
            self.number,
            options,
            lambda asked: in_memory(self.visit.layer, asked),
        )
        left = np.where(keep, ids, NO_EXPERT)
        mass = _mass(scores * keep, self.own)
        return dataclasses.replace(self.visit, experts=wanted([left]), mass=mass)


def _prepare(visit: Visit, header: TraceHeader, options: RoutingOptions) -> _Prepared:
    scores, router = _scores(visit), header.router
    k = min(options.k or header.num_experts_per_tok, header.num_experts_per_tok)
    most = header.num_experts // router.groups * router.chosen_groups
    width = candidates(k, most, options) if len(scores) == 1 else k
    ids = ranked(scores, visit.layer, header, width)
    chosen = np.take_along_axis(scores, ids, axis=1)
    number, own = header.layers.index(visit.layer), _own_sum(visit, scores, header)
    return _Prepared(visit, number, k, ids, chosen, own)


def ranked(scores: Floats, layer: int, header: TraceHeader, count: int) -> Ints:
    """The router's best `count` experts of scores [T, E], by rank -> [T, count]."""
    router = header.router
    if router.kind == "softmax":
        return np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int32)
    correction = np.array(router.correction[header.layers.index(layer)], dtype=np.float32)
    return grouped_topk(scores, correction, router.groups, router.chosen_groups, count)


def _own_sum(visit: Visit, scores: Floats, header: TraceHeader) -> Floats:
    own = ranked(scores, visit.layer, header, header.num_experts_per_tok)
    return np.asarray(np.take_along_axis(scores, own, axis=1).sum(axis=1))


def _mass(kept: Floats, own: Floats) -> float:
    """Mean over tokens of kept [T, K] summed, of own [T]."""
    return float(np.mean(kept.sum(axis=1) / np.maximum(own, np.float32(1e-20))))


def _scores(visit: Visit) -> Floats:
    return np.concatenate([part.scores for part in visit.rows])


def _padded(ids: np.ndarray, width: int) -> np.ndarray:
    missing = width - ids.shape[1]
    return np.pad(ids, ((0, 0), (0, missing)), constant_values=NO_EXPERT)
