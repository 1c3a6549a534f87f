"""Decode steps as captured CUDA graphs: one for the whole token where every expert is on the card,
else one for each stretch between two routings, whose ids the host must see.

A graph is the model's own forward pass, recorded once per set of states: token and position are
read from device memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from flashmoe.experts.device import DeviceExperts, DeviceTicket
from flashmoe.experts.mapped import MappedExperts
from flashmoe.generate.engine import check_finite
from flashmoe.layers.state import Batch, LayerState, Segment, SequenceState
from flashmoe.models.decoder import Decoder
from flashmoe.ops.base import Floats
from flashmoe.ops.cuda.backend import CudaOps
from flashmoe.ops.cuda.clock import CARD, COPIES, PLANNING, Mark, durations, split_waits
from flashmoe.ops.cuda.handles import Normed

# One decode step in so many is timed phase by phase; of those in pieces, which differ more from one
# to the next and cost less to time.
_TIMED_STEPS = 32
_TIMED_PIECES = 8
LayerStates = list[LayerState]
CardRouted = DeviceExperts | MappedExperts


@dataclass(frozen=True)
class DeviceSegment(Segment):
    """A segment whose position is a tensor on the card."""

    position: Any

    @property
    def start(self) -> Any:
        """int32 [1]."""
        return self.position


@dataclass(frozen=True)
class DeviceBatch(Batch):
    """One token of one sequence, its id and position int32 [1] on the card."""

    position: Any

    def positions(self) -> Any:
        """int32 [1]."""
        return self.position

    def advance(self) -> None:
        """The host counts."""


@dataclass
class Handoff:
    """What a captured step tells the host of each layer, in pinned memory: routed ids and those of
    a guess int32 [layers, K], a guess for which layer (if any)."""

    ids: torch.Tensor
    ahead: torch.Tensor
    following: list[int | None]

    @staticmethod
    def room(layers: int, k: int) -> Handoff:
        """For so many layers and experts per token."""
        ids, ahead = (torch.zeros((layers, k), dtype=torch.int32, pin_memory=True) for _ in "ab")
        return Handoff(ids, ahead, [None] * layers)


class Cuts:
    """Routed experts that end the graph at every point where the host has to act.

    Graph 2 i ends with the ids of layer i (and a guess at those of the next) on their way to the
    host; graph 2 i + 1 computes what is on the card already. Where the CPU takes a share, graph
    2 i ends later, with what it needs.
    """

    residents = None

    def __init__(self, experts: DeviceExperts, recorder: Recorder, told: Handoff) -> None:
        self._experts, self._recorder, self._told = experts, recorder, told
        self._layer = 0
        self.wants_ahead = experts.guesses

    def begin(
        self, layer: int, ids: torch.Tensor, ahead: tuple[int, torch.Tensor] | None = None
    ) -> DeviceTicket:
        """The ids leave the card; cut."""
        told, row = self._told, self._layer
        told.ids[row].copy_(ids[0], non_blocking=True)
        if ahead is not None:
            self._experts.routed.rejoin()
            told.following[row] = ahead[0]
            told.ahead[row].copy_(ahead[1][0], non_blocking=True)
        self._layer += 1
        if self._experts.host is None:
            self._recorder.cut()
        return DeviceTicket(layer, ids)

    def finish(
        self, ticket: DeviceTicket, x: torch.Tensor | Normed, weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """What is there; cut; the rest."""
        layer, ids, experts = ticket.layer, ticket.ids, self._experts
        if experts.host is not None:
            experts.hand_over(layer, x, weights)
            self._recorder.cut()
        experts.fetch_table(layer)
        hidden = experts.compute_hits(layer, x, ids)
        self._recorder.cut()
        experts.compute_rest(layer, x, ids, weights, hidden, out, shared=True)


class Recorder:
    """Captures launches into graphs, one after the other, in one memory pool."""

    def __init__(self) -> None:
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __enter__(self) -> Recorder:
        torch.cuda.synchronize()
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()
        self._start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # A capture that failed halfway cannot be ended well: what is raised is the first error.
        with suppress(RuntimeError) if kind is not None else nullcontext():
            self.graphs[-1].capture_end()
        self._context.__exit__(kind, *error)

    def cut(self) -> None:
        """What follows goes into the next graph."""
        self.graphs[-1].capture_end()
        self._start()

    def _start(self) -> None:
        self.graphs.append(torch.cuda.CUDAGraph())
        self.graphs[-1].capture_begin(pool=self._pool, capture_error_mode="thread_local")


@dataclass(frozen=True)
class Captured:
    """A decode step: its graphs, what they leave on the card, events between phases (if any)."""

    graphs: list[torch.cuda.CUDAGraph]
    logits: torch.Tensor
    total: torch.Tensor  # finite only if every logit is
    marks: list[Mark]


class DecodeGraphs:
    """The decode step of one set of layer states.

    A token that needs nothing from the host is captured twice: with events between its phases,
    which cost some time, for one step in many, and without.
    """

    def __init__(
        self, decoder: Decoder, experts: CardRouted, ops: CudaOps, states: LayerStates, k: int
    ) -> None:
        self._experts, self._ops = experts, ops
        self._given = torch.zeros(2, dtype=torch.int32, pin_memory=True)  # id, position
        self._given_values = self._given.numpy()
        self._inputs = torch.zeros(2, dtype=torch.int32, device=ops.device)
        rows = len(experts.layers)
        self._told = Handoff.room(rows, k)
        # Read as NumPy: items of a tensor cost a microsecond each.
        self._host_ids, self._host_ahead = self._told.ids.numpy(), self._told.ahead.numpy()
        self._plain = self._timed = self._capture(decoder, states)
        if experts.static:
            with ops.clock.marked() as marks:
                self._timed = replace(self._capture(decoder, states), marks=marks)
        self._steps = 0
        self._phases: dict[str, float] = {}
        self._answer = torch.empty(self._plain.logits.shape, dtype=torch.float32, pin_memory=True)
        self._answer_sum = torch.empty((), dtype=torch.float32, pin_memory=True)

    def _capture(self, decoder: Decoder, states: LayerStates) -> Captured:
        recorder, experts = Recorder(), self._experts
        with recorder:
            routed: Any = experts
            if isinstance(experts, DeviceExperts) and not experts.static:
                routed = Cuts(experts, recorder, self._told)
            logits = self._forward(decoder, routed, states)
            total = logits.sum()
            self._ops.clock.phase = "other"
        return Captured(recorder.graphs, logits, total, [])

    def _forward(self, decoder: Decoder, experts: Any, states: LayerStates) -> torch.Tensor:
        id, position = self._inputs[:1], self._inputs[1:]
        sequence = SequenceState(0, states)
        batch = DeviceBatch(id, (DeviceSegment(sequence, 0, 1, position),), position)  # type: ignore[arg-type]
        ops: Any = self._ops
        h = decoder.forward(batch, experts, ops)
        ops.clock.phase = "head"
        return ops.device_logits(h, decoder.head)  # type: ignore[no-any-return]

    def run(self, id: int, position: int) -> Floats:
        """Feed a token at a position -> logits [1, vocab_size], until the next call.

        Raises NumericError if a logit is NaN or infinite.
        """
        step = self._timed if self._steps % _TIMED_STEPS == 0 else self._plain
        self._steps += 1
        self._given_values[:] = id, position
        self._inputs.copy_(self._given, non_blocking=True)
        if isinstance(self._experts, DeviceExperts) and not self._experts.static:
            self._run_pieces(self._experts)
        else:
            step.graphs[0].replay()
        self._answer.copy_(step.logits, non_blocking=True)
        self._answer_sum.copy_(step.total, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        if step.marks:
            self._phases = durations(step.marks)
        check_finite(self._answer_sum.numpy(), self._ops)  # type: ignore[arg-type]
        logits: Floats = self._answer.numpy()
        return logits

    def phases(self, seconds: float) -> dict[str, float]:
        """How a step of so many seconds splits, by the last one that was timed."""
        known = sum(self._phases.values())
        if not known:
            return {"graph": seconds}
        scale = min(1.0, seconds / known)
        return {name: value * scale for name, value in self._phases.items()}

    def _run_pieces(self, experts: DeviceExperts) -> None:
        if self._steps % _TIMED_PIECES:
            self._run_in_pieces(experts, _no_mark)
            return
        self._ops.clock.take()
        waited, shared = _host_seconds(experts)
        self._run_in_pieces(experts, self._mark)
        disk, host = _host_seconds(experts)
        self._phases = split_waits(self._ops.clock.take(), disk - waited, host - shared)

    def _mark(self, phase: str) -> None:
        self._ops.clock.phase = phase

    def _run_in_pieces(self, experts: DeviceExperts, mark: Callable[[str], None]) -> None:
        """mark: told what the card does, or waits for, from now on."""
        stream, graphs = torch.cuda.current_stream(), self._plain.graphs
        for row, layer in enumerate(experts.layers):
            mark(CARD)
            graphs[2 * row].replay()
            stream.synchronize()
            mark(PLANNING)
            ids = self._host_ids[row].tolist()
            placement = experts.decide(layer, ids, alone=True)
            experts.stage(layer, placement)
            mark(CARD)
            graphs[2 * row + 1].replay()
            mark(COPIES if placement.loads or placement.host else PLANNING)
            experts.send(layer, placement, guess=self._guess(experts, row), ids=ids)
        mark(CARD)
        graphs[-1].replay()

    def _guess(self, experts: DeviceExperts, row: int) -> tuple[int, list[int]] | None:
        following = self._told.following[row]
        if following is None:
            return None
        return experts.missing(following, self._host_ahead[row].tolist())


def _no_mark(phase: str) -> None:
    pass


def _host_seconds(experts: DeviceExperts) -> tuple[float, float]:
    """In which the host has waited for the disk, and computed experts."""
    assert experts.ram is not None
    shared = 0.0 if experts.host is None else experts.host.seconds
    return experts.ram.stats.wait_seconds, shared
