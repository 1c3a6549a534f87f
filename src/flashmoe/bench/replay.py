"""Replays a routing trace through the engine's own plan and slots, without bytes or kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flashmoe.bench.belady import Belady
from flashmoe.bench.choosing import Chooser, asks_the_cache, check_rules, chooser, ruled
from flashmoe.bench.traces import Trace, Visit
from flashmoe.errors import UsageError
from flashmoe.experts.plan import Plan, plan
from flashmoe.experts.policies import POLICIES
from flashmoe.experts.policy import Key, Policy
from flashmoe.experts.residency import Residency
from flashmoe.layers.choice import InMemory
from flashmoe.ops.base import Ints
from flashmoe.routing import RoutingOptions

OPTIMUM: Final = "belady"
NAMES: Final = (*POLICIES, OPTIMUM)
NO_RULES: Final = RoutingOptions()


@dataclass(frozen=True)
class Replay:
    """What a policy reached on a trace; counted over decode visits, prefill fills the cache.

    first_uses: misses that no policy avoids, the expert is asked for the first time.
    bytes_per_token: of misses; None where the trace has no sizes. routing: lossy rules of the
    replay. mass: what the computed experts have of the router scores of the model's own K, 0 to 1,
    the mean over tokens and layers; None where the trace has no scores. experts: computed per token
    and layer. prefill_hits, prefill_misses: of the other visits.
    """

    policy: str
    slots: int
    share: float
    hits: int
    misses: int
    first_uses: int
    bytes_per_token: float | None
    routing: str = ""
    mass: float | None = None
    experts: float | None = None
    prefill_hits: int = 0
    prefill_misses: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of wanted experts that were resident."""
        return self.hits / (self.hits + self.misses)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "hit_rate": self.hit_rate}


def replay_all(
    trace: Trace,
    slots: Iterable[int],
    names: Sequence[str] | None = None,
    rules: Sequence[RoutingOptions] = (NO_RULES,),
) -> Iterator[Replay]:
    """Every rule with every number of slots (one global pool over all layers) and policy.

    names: default all that can be; the optimum cannot where rules look at the cache, because what
    is asked for then depends on it.
    """
    sizes = list(slots)
    for options in rules:
        run = _Run.of(trace, options)
        able = [name for name in NAMES if name != OPTIMUM or run.choose is None]
        for count in sizes:
            for name in names or able:
                yield run.with_cache(count, name)


def replay(trace: Trace, slots: int, name: str, options: RoutingOptions = NO_RULES) -> Replay:
    """Raises UsageError for an unknown policy, a cache too small for one visit, a trace that
    decodes nothing, or rules that it cannot answer."""
    return _Run.of(trace, options).with_cache(slots, name)


@dataclass(frozen=True)
class _Run:
    """A trace under rules; choose: of those that look at the cache."""

    trace: Trace
    options: RoutingOptions
    choose: Chooser | None = None

    @staticmethod
    def of(trace: Trace, options: RoutingOptions) -> _Run:
        check_rules(trace, options)
        if not trace.tokens:
            raise UsageError("no token is decoded", where=trace.name)
        if asks_the_cache(options):
            return _Run(trace, options, chooser(trace, options))
        return _Run(ruled(trace, options), options)

    def with_cache(self, slots: int, name: str) -> Replay:
        if slots < self.trace.widest:
            expected = f"at least {self.trace.widest} slots, what one layer of one token asks for"
            where = self.trace.name
            raise UsageError("the cache is too small", where=where, expected=expected, got=slots)
        counts, policy = _Counts(), self._policy(name, slots)
        residency = Residency(slots, policy)
        for index, visit in enumerate(self.trace.visits):
            if self.choose is not None:
                visit = self.choose(index, _memory_of(residency))
            wanted = [(visit.layer, expert) for expert in visit.experts]
            decided = plan(wanted, residency)
            _carry_out(decided, wanted, residency, policy)
            counts.add(visit, wanted, decided)
        return counts.replay(self.trace, name, slots, self.options)

    def _policy(self, name: str, slots: int) -> Policy:
        if name not in NAMES:
            raise UsageError("unknown policy", where="policy", expected=" | ".join(NAMES), got=name)
        if name != OPTIMUM:
            return POLICIES[name](slots, self._uses())
        if self.choose is None:
            return Belady(self.trace.visits)
        raise UsageError(
            "the optimum is unknown where rules look at the cache",
            where=f"policy {name}",
            hint="Name other policies with --policy",
        )

    def _uses(self) -> float:
        """Uses of experts by a token: what the engine counts on (loading.py), or the mean."""
        trace = self.trace
        if trace.recorded is None:
            return sum(len(visit.experts) for visit in trace.visits if visit.decode) / trace.tokens
        header = trace.recorded.header
        k = self.options.k
        if self.options == NO_RULES:
            k = RoutingOptions.parse(header.lossy).k
        return len(header.layers) * (k or header.num_experts_per_tok) * header.parallel


def _carry_out(decided: Plan, wanted: Sequence[Key], residency: Residency, policy: Policy) -> None:
    """What the engine does for a layer (experts/ticket.py)."""
    for load in decided.loads:
        residency.start(load)
        residency.landed(load.slot)
    residency.used(wanted)
    if isinstance(policy, Belady):
        for key in wanted:
            if residency.slot_of(key) is None:
                policy.passed(key)


def _memory_of(residency: Residency) -> InMemory:
    """As ExpertCache.in_memory."""

    def in_memory(layer: int, ids: Ints) -> NDArray[np.bool_]:
        return np.array([residency.slot_of((layer, e)) is not None for e in ids.tolist()])

    return in_memory


@dataclass
class _Counts:
    hits: int = 0
    prefill_hits: int = 0
    prefill_misses: int = 0
    first_uses: int = 0
    experts: int = 0
    token_visits: int = 0
    mass: float = 0.0
    missed: list[int] = field(default_factory=list)  # the layer of each miss
    seen: set[Key] = field(default_factory=set)

    def add(self, visit: Visit, wanted: Sequence[Key], decided: Plan) -> None:
        new = {*wanted} - self.seen
        self.seen |= new
        if not visit.decode:
            self.prefill_hits += len(decided.hits)
            self.prefill_misses += len(decided.loads)
            return
        self.hits += len(decided.hits)
        self.missed += [visit.layer] * len(decided.loads)
        self.first_uses += len(new)
        self.experts += len(wanted)
        self.token_visits += visit.tokens
        self.mass += visit.tokens * (visit.mass or 0.0)

    def replay(self, trace: Trace, name: str, slots: int, options: RoutingOptions) -> Replay:
        sizes = [trace.expert_bytes.get(layer) for layer in self.missed]
        known = [size for size in sizes if size is not None]
        return Replay(
            policy=name,
            slots=slots,
            share=slots / trace.total_experts,
            hits=self.hits,
            misses=len(self.missed),
            first_uses=self.first_uses,
            bytes_per_token=sum(known) / trace.tokens if trace.expert_bytes else None,
            routing=options.lossy,
            mass=None if trace.recorded is None else self.mass / self.token_visits,
            experts=self.experts / self.token_visits,
            prefill_hits=self.prefill_hits,
            prefill_misses=self.prefill_misses,
        )
