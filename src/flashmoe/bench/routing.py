"""Does routing spread? Random weights can send every token to the same few experts, and then every
figure of a cache is wrong; so a synthetic model is asked before it is measured."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmoe.generate.engine import StepExperts
from flashmoe.layers.moe import Ahead
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model


class RoutingRecorder:
    """Routed experts that note which ids each layer asked for."""

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
class RoutingSpread:
    """distinct: experts used per layer by `tokens` tokens; uniform: expected if all were alike."""

    tokens: int
    distinct: tuple[int, ...]
    uniform: float

    @property
    def worst(self) -> float:
        """The least spread layer's share of what uniform routing would use."""
        return min(self.distinct) / self.uniform


def measure_spread(model: Model, tokens: int = 48, seed: int = 0) -> RoutingSpread:
    """Run random tokens through the model and count the experts that each layer used."""
    engine = model.session().engine
    recorder = RoutingRecorder(engine.experts)
    engine.experts, inner = recorder, engine.experts
    try:
        ids = np.random.default_rng(seed).integers(0, engine.vocab_size, tokens)
        model.session().feed(ids.tolist())
    finally:
        engine.experts = inner
    config = model.config
    missed = (1 - config.num_experts_per_tok / config.num_experts) ** tokens
    distinct = [len(np.unique(np.concatenate(ids))) for _, ids in sorted(recorder.ids.items())]
    return RoutingSpread(tokens, tuple(distinct), config.num_experts * (1 - missed))
