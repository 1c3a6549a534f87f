"""An engine on a card: its decode steps are captured graphs (captured.py)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from flashmoe.errors import MemoryBudgetError
from flashmoe.generate.captured import DecodeGraphs, LayerStates
from flashmoe.generate.engine import Engine, PhaseTimes
from flashmoe.layers.state import Batch, SequenceState
from flashmoe.models.decoder import OnLayer
from flashmoe.ops.base import Floats
from flashmoe.ops.cuda import memory
from flashmoe.sizes import format_size


@dataclass
class _Place:
    """Layer states that one sequence at a time may use, and their graphs."""

    states: LayerStates
    graphs: DecodeGraphs | None


@dataclass
class GraphedEngine(Engine):
    """An Engine on a card. States and graphs outlive a sequence and serve the next one.

    tensor_bytes: what torch may take. pass_bytes: of that, what a chunk of a prompt takes beside
    what stays; no sequence after the first is given any of it.
    """

    num_experts_per_tok: int = 0
    tensor_bytes: int = 0
    pass_bytes: int = 0
    _free: list[_Place] = field(default_factory=list)
    _used: dict[int, _Place] = field(default_factory=dict)

    @property
    def _graphed(self) -> bool:
        """False under Triton's interpreter."""
        return torch.cuda.is_available()

    def new_state(self) -> SequenceState:
        """An empty sequence. Raises MemoryBudgetError where the card has no room for one more."""
        place = self._free.pop() if self._free else self._new_place()
        sequence = SequenceState(self.context_length, place.states)
        sequence.reset()
        self._used[id(sequence)] = place
        weakref.finalize(sequence, self._give_back, id(sequence))
        return sequence

    def _give_back(self, key: int) -> None:
        place = self._used.pop(key, None)
        if place is not None and not self.closed:
            self._free.append(place)

    def _new_place(self) -> _Place:
        with memory.within_limit("another sequence"):
            if self._graphed:
                torch.cuda.empty_cache()  # what stays shares no block with what passes
            place = _Place(self._new_layers().layers, None)
            if self._graphed:
                place.graphs = self._captured(place.states)
                self._check_room()
        return place

    def _new_layers(self) -> SequenceState:
        return self.decoder.new_state(self.context_length, self.kv_dtype, self.ops.state)

    def _captured(self, states: LayerStates) -> DecodeGraphs:
        ops: Any = self.ops
        experts: Any = self.experts
        return DecodeGraphs(self.decoder, experts, ops, states, self.num_experts_per_tok)

    def _check_room(self) -> None:
        needed = torch.cuda.memory_reserved() + self.pass_bytes
        if needed > self.tensor_bytes:
            raise MemoryBudgetError(
                "no room on the card for another sequence beside a chunk of a prompt",
                where="--vram",
                expected=f"at most {format_size(self.tensor_bytes)}",
                got=format_size(needed),
                hint="Let another session go first, raise --vram or shorten the context",
            )

    def close(self) -> None:
        """Let weights, states and graphs go."""
        super().close()
        self._free.clear()
        self._used.clear()

    def _run(
        self,
        batch: Batch,
        rows: slice,
        times: PhaseTimes,
        out: Floats | None = None,
        on_layer: OnLayer | None = None,
    ) -> Floats:
        if len(batch.ids) > 1 or not self._graphed:
            with memory.within_limit(f"a pass over {len(batch.ids)} tokens"):
                return super()._run(batch, rows, times, out, on_layer)
        start = perf_counter()
        logits = self._replay(batch)
        if on_layer is not None:
            on_layer(len(self.decoder.layers), len(self.decoder.layers))
        seconds = perf_counter() - start
        graphs = self._used[id(batch.segments[0].state)].graphs
        assert graphs is not None
        times.book(1, seconds, graphs.phases(seconds))
        return logits

    def _replay(self, batch: Batch) -> Floats:
        state = batch.segments[0].state
        graphs = self._used[id(state)].graphs
        assert graphs is not None
        try:
            logits = graphs.run(int(batch.ids[0]), state.position)
        finally:
            self.experts.end_step()
        batch.advance()
        return logits


def warm_up(engine: GraphedEngine, chunk: int) -> None:
    """Run a token and a full chunk once: kernels are compiled; the memory of the first sequence
    and of a pass beside it is taken now."""
    _pass(engine, engine._new_layers(), 1)  # what is captured has to be compiled
    sequence = engine.new_state()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    kept = torch.cuda.memory_reserved()
    _pass(engine, sequence, min(chunk, engine.context_length - 1))
    engine.pass_bytes = torch.cuda.max_memory_reserved() - kept


def _pass(engine: GraphedEngine, state: SequenceState, tokens: int) -> None:
    ids = np.zeros(tokens, dtype=np.int32)
    engine.decoder.forward(Batch.single(state, ids), engine.experts, engine.ops)
    engine.experts.end_step()
