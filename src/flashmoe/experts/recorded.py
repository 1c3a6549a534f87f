"""Routed experts that tell somebody what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashmoe.layers.moe import Ahead, RoutedExperts
from flashmoe.ops.base import Floats, Ints

# Called with layer, ids [T, K], x [T, H], weights [T, K]; the arrays hold until it returns.
OnExperts = Callable[[int, Ints, Floats, Floats], None]


class RecordedExperts:
    """flashmoe.layers.moe.RoutedExperts in front of another one."""

    residents = None
    wants_ahead = False

    def __init__(self, inner: Any, on_experts: OnExperts) -> None:
        self._inner: RoutedExperts = inner
        self._on_experts = on_experts
        self.end_step = inner.end_step
        self._now: tuple[int, Ints] | None = None

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> Any:
        """As the other one; `ahead` is not passed on."""
        self._now = layer, ids.copy()
        return self._inner.begin(layer, ids)

    def finish(self, ticket: Any, x: Floats, weights: Floats, out: Floats) -> None:
        """As the other one, after the record was told."""
        assert self._now is not None, "finish before begin"
        self._on_experts(*self._now, x, weights)
        self._inner.finish(ticket, x, weights, out)
