"""Does routing spread? Random weights can send every token to the same few experts, and then every
figure of a cache is wrong; so a synthetic model is asked before it is measured."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.generate.engine import StepExperts
from flashmoe.layers.moe import Ahead
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model


class RoutingRecorder:
    """Routed experts that note which ids each layer asked for."""

    residents = None

    def __init__(self, inner: StepExperts) -> None:
        self._inner = inner
        self.ids: dict[int, list[Ints]] = defaultdict(list)

    @property
    def wants_ahead(self) -> bool:
        """As the inner one."""
        return self._inner.wants_ahead

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> Any:
        """Note ids [T, K], then begin."""
        self.ids[layer].append(ids.copy())
        return self._inner.begin(layer, ids, ahead)

    def finish(self, ticket: Any, x: Floats, weights: Floats, out: Floats) -> None:
        """As the inner one."""
        self._inner.finish(ticket, x, weights, out)

    def end_step(self) -> None:
        """As the inner one."""
        self._inner.end_step()


@dataclass(frozen=True)
class RoutingUse:
    """How often `tokens` random tokens chose each expert.

    layers: numbers of those with experts. counts: float64 [E] for each.
    """

    tokens: int
    layers: tuple[int, ...]
    counts: tuple[NDArray[np.float64], ...]
    experts_per_token: int

    @property
    def distinct(self) -> tuple[int, ...]:
        """Experts used, by layer."""
        return tuple(int(np.count_nonzero(counts)) for counts in self.counts)

    @property
    def uniform(self) -> float:
        """Experts that would be used if all were alike."""
        experts = len(self.counts[0])
        missed = (1 - self.experts_per_token / experts) ** self.tokens
        return float(experts * (1 - missed))

    @property
    def worst(self) -> float:
        """The least spread layer's share of what uniform routing would use."""
        return min(self.distinct) / self.uniform


def measure_routing(model: Model, tokens: int = 48, seed: int = 0) -> RoutingUse:
    """Run random tokens through the model and count what each layer chose."""
    engine = model.session().engine
    recorder = RoutingRecorder(engine.experts)
    engine.experts, inner = recorder, engine.experts
    try:
        ids = np.random.default_rng(seed).integers(0, engine.vocab_size, tokens)
        model.session().feed(ids.tolist())
    finally:
        engine.experts = inner
    config = model.config
    layers = tuple(sorted(recorder.ids))
    chosen = [np.concatenate(recorder.ids[layer]).reshape(-1) for layer in layers]
    counts = [np.bincount(ids, minlength=config.num_experts).astype(np.float64) for ids in chosen]
    return RoutingUse(tokens, layers, tuple(counts), config.num_experts_per_tok)
