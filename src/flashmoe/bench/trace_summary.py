"""What a routing trace shows at a glance: how evenly experts are used, how tokens resemble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flashmoe.bench.traces import Trace, Visit
from flashmoe.experts.trace_format import NO_EXPERT

_SHOWN: Final = 5
_BUSIEST: Final = 0.1
Ids = NDArray[np.integer[Any]]


class TopExpert(NamedTuple):
    """An expert and the share of its layer's tokens that use it."""

    layer: int
    expert: int
    share: float


@dataclass(frozen=True)
class Summary:
    """tokens: of prompts and answers, decoded: those one at a time. used: experts per token and
    layer. busiest: share of all uses that goes to a tenth of the experts of each layer; 0.1 if all
    are used alike. overlap: share of a token's experts that the token before it used as well.
    top: the most used. mass: router scores of the experts used, of all in the layer; None without
    scores. hits, misses: of the engine until the last pass, or the end, that the trace knows of.
    """

    tokens: int
    decoded: int
    layers: int
    num_experts: int
    used: float
    busiest: float
    overlap: float | None
    top: tuple[TopExpert, ...]
    mass: float | None = None
    hits: int | None = None
    misses: int | None = None


def summarize(trace: Trace) -> Summary:
    """Reads all of the trace once."""
    layers = sorted({visit.layer for visit in trace.visits})
    uses = np.zeros((len(layers), trace.num_experts), dtype=np.int64)
    tokens = np.zeros(len(layers), dtype=np.int64)
    for visit in trace.visits:
        row = layers.index(visit.layer)
        ids = _ids(visit)
        tokens[row] += len(ids)
        uses[row] += np.bincount(ids[ids != NO_EXPERT], minlength=trace.num_experts)
    return Summary(
        tokens=int(tokens[0]),
        decoded=trace.tokens,
        layers=len(layers),
        num_experts=trace.num_experts,
        used=float(uses.sum() / tokens.sum()),
        busiest=_busiest(uses),
        overlap=_overlap(trace),
        top=_top(uses / np.maximum(tokens, 1)[:, None], layers),
        **_recorded(trace),
    )


def _ids(visit: Visit) -> Ids:
    """Expert ids of each token [T, K]."""
    if not visit.rows:
        return np.array([visit.experts])
    widest = max(part.ids.shape[1] for part in visit.rows)
    padded = [
        np.pad(part.ids, ((0, 0), (0, widest - part.ids.shape[1])), constant_values=NO_EXPERT)
        for part in visit.rows
    ]
    return np.concatenate(padded)


def _busiest(uses: NDArray[np.int64]) -> float:
    count = max(1, round(_BUSIEST * uses.shape[1]))
    return float(np.sort(uses, axis=1)[:, -count:].sum() / uses.sum())


def _top(shares: NDArray[np.float64], layers: list[int]) -> tuple[TopExpert, ...]:
    order = np.argsort(-shares, axis=None, kind="stable")[:_SHOWN]
    places = zip(*np.unravel_index(order, shares.shape), strict=True)
    return tuple(
        TopExpert(layers[row], int(expert), float(shares[row, expert])) for row, expert in places
    )


def _overlap(trace: Trace) -> float | None:
    pairs = [np.stack([common, count]) for common, count in _pairs(trace) if len(count)]
    if not pairs:
        return None
    common, count = np.concatenate(pairs, axis=1).sum(axis=1)
    return float(common / count)


def _pairs(trace: Trace) -> Iterator[tuple[Ids, Ids]]:
    """Of tokens that follow another one of their sequence: experts in common, experts."""
    before: dict[int, dict[int, Ids]] = {}  # layer -> position after a token -> its ids
    for number, visit in enumerate(trace.visits):
        ids, known = _ids(visit), before.get(visit.layer, {})
        ends: dict[int, Ids] = {}
        for start, rows in _sequences(trace, number, ids):
            if start in known:
                yield _common(known[start][None], rows[:1])
            yield _common(rows[:-1], rows[1:])
            ends[start + len(rows) if trace.recorded else start] = rows[-1]
        before[visit.layer] = ends


def _sequences(trace: Trace, number: int, ids: Ids) -> Iterator[tuple[int, Ids]]:
    """Start and ids of each sequence's tokens of a visit; traces that do not tell have one."""
    if trace.recorded is None:
        yield 0, ids
        return
    begin = 0
    for start, tokens in trace.recorded.layers[number].facts.spans:
        yield start, ids[begin : begin + tokens]
        begin += tokens


def _common(earlier: Ids, later: Ids) -> tuple[Ids, Ids]:
    there = later != NO_EXPERT
    found = (later[:, :, None] == earlier[:, None, :]).any(axis=2) & there
    return found.sum(axis=1), there.sum(axis=1)


def _mass(trace: Trace) -> float:
    """Mean over tokens and layers of the scores of experts used, of the sum of all."""
    total, count = 0.0, 0
    for visit in trace.visits:
        for ids, scores in visit.rows:
            there = ids != NO_EXPERT
            used = np.take_along_axis(scores, np.where(there, ids, 0).astype(np.int64), axis=1)
            total += float(((used * there).sum(axis=1) / scores.sum(axis=1)).sum())
            count += len(ids)
    return total / count


def _recorded(trace: Trace) -> dict[str, Any]:
    """What only a recorded trace tells."""
    if trace.recorded is None:
        return {}
    passes = list(trace.recorded.passes.values())
    hits, misses = trace.recorded.last or (passes[-1].hits, passes[-1].misses)
    return {"mass": _mass(trace), "hits": hits, "misses": misses}
