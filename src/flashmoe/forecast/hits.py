"""How often a cache finds an expert: a curve from replayed traces, or a replay of one's own. Pure.

    h(f) = 1 - (1 - f^0.75)^a

for a cache of a share f of all experts. The exponents are fits of the engine's own order of
eviction on two traces (docs/plan.md, which says how far off they are).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from flashmoe.bench.replay import replay
from flashmoe.bench.traces import Trace

_BEND: Final = 0.75
# Share of the experts that a token uses, and a: OLMoE (8 of 64), Qwen3-30B-A3B (6 of 128).
_DENSE: Final = (8 / 64, 2.05)
_SPARSE: Final = (6 / 128, 4.4)
_POLICY: Final = "lfru"
_SYNTHETIC: Final = "synthetic-"


@dataclass(frozen=True)
class Hits:
    """rate: the hit rate of a cache that holds a share of all experts. note: for people."""

    rate: Callable[[float], float]
    origin: Literal["estimated", "replayed"]
    note: str = ""


def expected_hits(source: str, chosen_share: float, trace: Trace | None) -> Hits:
    """source: what the model was made from; chosen_share: of the experts, what a token uses."""
    if trace is not None:
        return Hits(lambda share: replayed_hit_rate(trace, share), "replayed", trace.name)
    if source.startswith(_SYNTHETIC):
        return Hits(even_hit_rate, "estimated", "weights are synthetic: even")
    return Hits(lambda share: hit_rate(share, chosen_share), "estimated")


def even_hit_rate(share: float) -> float:
    """With routing that prefers no expert."""
    return min(share, 1.0)


def steepness(chosen_share: float) -> float:
    """The exponent a for models whose tokens use such a share of the experts.

    Between the two traces on a line in logarithms, beyond them that of the nearer.
    """
    (dense, low), (sparse, high) = _DENSE, _SPARSE
    place = math.log(chosen_share / dense) / math.log(sparse / dense)
    return low * float((high / low) ** min(max(place, 0.0), 1.0))


def hit_rate(share: float, chosen_share: float) -> float:
    """Of a cache that holds a share of all experts, with routing as skewed as in real texts."""
    return 1 - float((1 - min(share, 1.0) ** _BEND) ** steepness(chosen_share))


def replayed_hit_rate(trace: Trace, share: float) -> float:
    """Of a cache of that share of the trace's experts, by the engine's order of eviction.

    1 where every expert fits. Raises UsageError if the trace decodes nothing.
    """
    if share >= 1:
        return 1.0
    slots = max(trace.widest, int(share * trace.total_experts))
    return replay(trace, slots, _POLICY).hit_rate
