"""An engine whose tokens follow from the sequence alone, and whose layers pass when the test says.

The real scheduler and worker run on it; only the arithmetic is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.generate.costs import Costs
from flashmoe.generate.engine import PhaseTimes, Prefixes
from flashmoe.generate.scheduler import Scheduler
from flashmoe.layers.state import Batch, SequenceState
from flashmoe.stats import Stats
from tests.support.serving import TOKENIZER

VOCAB = 300
LAYERS = 3


def next_token(id: int, position: int) -> int:
    """What follows `id` at a position."""
    return (31 * id + 7 * position + 3) % VOCAB


def answer_to(prompt: list[int], tokens: int) -> list[int]:
    """The answer of so many tokens."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(next_token(ids[-1], len(ids) - 1))
    return ids[len(prompt) :]


class ScriptedMemory:
    """Room for chunks of 64 tokens."""

    def chunk(self, tokens: int) -> int:
        return 64

    def prompt(self, chunk: int) -> Any:
        return nullcontext()


class ScriptedBatchEngine:
    """As flashmoe.generate.engine.Engine for a Scheduler. on_layer is called after each layer."""

    def __init__(self, on_layer: Callable[[], None] = lambda: None, context: int = 256) -> None:
        self.context_length, self.vocab_size = context, VOCAB
        self.memory, self.lossy = ScriptedMemory(), ""
        self.decoder = SimpleNamespace(layers=(None,) * LAYERS)
        self.ops = SimpleNamespace(all_finite=lambda x: bool(np.isfinite(x).all()))
        self.prefill, self.decode = PhaseTimes(), PhaseTimes()
        self._on_layer = on_layer

    def new_state(self) -> SequenceState:
        return SequenceState(self.context_length, [])

    def hidden(self, batch: Batch, times: PhaseTimes, on_layer: Any = None) -> NDArray[np.float32]:
        for layer in range(LAYERS):
            self._on_layer()
            if on_layer is not None:
                on_layer(layer + 1, LAYERS)
        rows = [[i, p] for i, p in zip(batch.ids, batch.positions(), strict=True)]
        batch.advance()
        return np.array(rows, dtype=np.float32)

    def logits_of(
        self, h: NDArray[np.float32], times: PhaseTimes, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        out[:] = 0
        for row, (id, position) in zip(out, h.astype(int).tolist(), strict=True):
            row[next_token(id, position)] = 20
        return out

    def last_logits(
        self, batch: Batch, times: PhaseTimes, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self.logits_of(self.hidden(batch, times)[-1:], times, out)[0]
        return row

    @contextmanager
    def between_steps(self, phase: str) -> Iterator[None]:
        yield


class ScriptedServedModel:
    """As flashmoe.Model for a Worker."""

    def __init__(self, engine: ScriptedBatchEngine, parallel: int = 2) -> None:
        self.engine, self.parallel, self.stats = engine, parallel, Stats()

    def scheduler(self, prefixes: Prefixes | None = None) -> Scheduler:
        engine: Any = self.engine
        return Scheduler(engine, TOKENIZER, Costs, self.parallel, prefixes, gap=0.0)
