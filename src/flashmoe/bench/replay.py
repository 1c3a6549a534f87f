"""Replays a routing trace through the engine's own plan and slots, without bytes or kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flashmoe.bench.belady import Belady
from flashmoe.bench.traces import Trace, Visit
from flashmoe.errors import UsageError
from flashmoe.experts.plan import plan
from flashmoe.experts.policies import POLICIES
from flashmoe.experts.policy import Policy
from flashmoe.experts.residency import Residency

OPTIMUM: Final = "belady"
NAMES: Final = (*POLICIES, OPTIMUM)


@dataclass(frozen=True)
class Replay:
    """What a policy reached on a trace; counted over decode visits, prefill only fills the cache.

    first_uses: misses that no policy avoids, the expert is asked for the first time.
    bytes_per_token: of misses; None where the trace has no sizes.
    """

    policy: str
    slots: int
    share: float
    hits: int
    misses: int
    first_uses: int
    bytes_per_token: float | None

    @property
    def hit_rate(self) -> float:
        """Share of wanted experts that were resident."""
        return self.hits / (self.hits + self.misses)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "hit_rate": self.hit_rate}


def replay_all(
    trace: Trace, slots: Iterable[int], names: Sequence[str] = NAMES
) -> Iterator[Replay]:
    """Every policy with every number of slots (one global pool over all layers)."""
    for count in slots:
        for name in names:
            yield replay(trace, count, name)


def replay(trace: Trace, slots: int, name: str) -> Replay:
    """Raises UsageError for an unknown policy, a cache too small for one visit, or a trace that
    decodes nothing."""
    if slots < trace.widest:
        expected = f"at least {trace.widest} slots, what one layer of one token asks for"
        raise UsageError("the cache is too small", where=trace.name, expected=expected, got=slots)
    if not trace.tokens:
        raise UsageError("no token is decoded", where=trace.name)
    wanted = sum(len(visit.experts) for visit in trace.visits if visit.decode)
    policy = _policy(name, slots, wanted / trace.tokens, trace.visits)
    missed = _missed(trace.visits, Residency(slots, policy))
    sizes = [trace.expert_bytes.get(layer) for layer in missed]
    known = [size for size in sizes if size is not None]
    return Replay(
        policy=name,
        slots=slots,
        share=slots / trace.total_experts,
        hits=wanted - len(missed),
        misses=len(missed),
        first_uses=_first_uses(trace.visits),
        bytes_per_token=sum(known) / trace.tokens if trace.expert_bytes else None,
    )


def _policy(name: str, slots: int, uses: float, visits: Sequence[Visit]) -> Policy:
    if name == OPTIMUM:
        return Belady(visits)
    if name not in POLICIES:
        raise UsageError("unknown policy", where="policy", expected=" | ".join(NAMES), got=name)
    return POLICIES[name](slots, uses)


def _missed(visits: Iterable[Visit], residency: Residency) -> list[int]:
    """The layer of every expert that decode visits had to load."""
    missed = []
    for visit in visits:
        wanted = [(visit.layer, expert) for expert in visit.experts]
        loads = plan(wanted, residency).loads
        for load in loads:
            residency.start(load)
            residency.landed(load.slot)
        residency.used(wanted)
        if visit.decode:
            missed += [visit.layer] * len(loads)
    return missed


def _first_uses(visits: Iterable[Visit]) -> int:
    seen: set[tuple[int, int]] = set()
    count = 0
    for visit in visits:
        new = {(visit.layer, expert) for expert in visit.experts} - seen
        seen |= new
        count += len(new) if visit.decode else 0
    return count
