"""Memory while the model runs: what a prompt borrows, what the cache gives up under pressure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from flashmoe.experts.room import CacheSize, PromptCosts
from flashmoe.experts.tuner import CacheTuner


class MemoryKeeper:
    """flashmoe.generate.engine.StepMemory on an ExpertCache. tuner: None if its size is fixed."""

    def __init__(self, costs: PromptCosts, size: CacheSize, tuner: CacheTuner | None) -> None:
        self._costs, self._size, self._tuner = costs, size, tuner

    @property
    def resizes(self) -> Mapping[str, int]:
        """How often the cache changed its size, by reason; loans to prompts are not counted."""
        return {} if self._tuner is None else dict(self._tuner.changes)

    def chunk(self, tokens: int) -> int:
        """Tokens per pass for a prompt of so many: a multiple of 64."""
        return self._costs.chunk(tokens, self._size.slots)

    def sweep_chunk(self, tokens: int) -> int:
        """Tokens per pass over a single layer, where so many follow each other: see
        PromptCosts."""
        return self._costs.sweep_chunk(tokens, self._size.slots)

    def prompt(self, chunk: int) -> AbstractContextManager[None]:
        """While the body runs there is room for the scratch of a pass over `chunk` tokens."""
        lent = self._costs.lent(chunk)
        return self._size.lend(lent) if lent else nullcontext()

    def after_pass(self, tokens: int, seconds: float) -> None:
        """A pass of `tokens` took `seconds`."""
        if self._tuner is not None:
            self._tuner.after_pass(tokens, seconds)
