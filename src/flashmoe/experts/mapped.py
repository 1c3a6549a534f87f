"""Routed experts on a card, all of them also in pinned RAM: the card plans and copies by itself.

Nothing waits for the host, so that a whole token is one captured graph even where experts are
missing. Prompts sweep through whole layers, the next one coming in while one is computed. In a
graph, what the next layer's router would choose now is copied while the bus would rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import triton

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.device import DeviceTicket
from flashmoe.experts.tiers import TierStats
from flashmoe.ops.clock import PhaseClock
from flashmoe.ops.cuda.clock import COPIES
from flashmoe.ops.cuda.handles import Normed
from flashmoe.ops.cuda.kernels import placement as kernels
from flashmoe.ops.cuda.products import FEW_TOKENS, next_power
from flashmoe.ops.cuda.routed import ExpertArena, ManyTokens, RoutedProducts

# Programs that copy a record: as few as fill the bus.
_PIECES = 32
_COPY_WORDS = 4096
# The likeliest experts of the next layer that are sent for ahead: about what the bus can bring
# while a layer is computed.
_GUESSES = 4


class Pinned(Protocol):
    """flashmoe.ops.cuda.memory.PinnedArena."""

    @property
    def address(self) -> int: ...
    def bytes(self) -> torch.Tensor: ...


def preload(ram: ExpertCache, address: int, layers: Sequence[int], experts: int, size: int) -> None:
    """Read every record into RAM, in order: layer by layer, expert by expert."""
    for row, layer in enumerate(layers):
        with ram.begin(layer, range(experts)) as ticket:
            for batch in ticket.batches():
                for index, where in batch:
                    assert where == address + (row * experts + index) * size


@dataclass
class MappedExperts:
    """flashmoe.layers.moe.RoutedExperts. pinned: every record in order (see `preload`)."""

    arena: ExpertArena
    layers: Sequence[int]
    num_experts: int
    pinned: Pinned
    routed: RoutedProducts
    slots: int
    clock: PhaseClock
    static: bool = True
    residents: None = None
    _pass_stats: TierStats = field(default_factory=TierStats)

    def __post_init__(self) -> None:
        device, total = self.arena.words.device, len(self.layers) * self.num_experts
        self._rows = {layer: row for row, layer in enumerate(self.layers)}
        self._host = self.pinned.bytes().view(torch.int32)
        self._table = torch.full((total,), -1, dtype=torch.int32, device=device)
        self._owner = torch.full((self.slots,), -1, dtype=torch.int32, device=device)
        self._stamp = torch.zeros(self.slots, dtype=torch.int32, device=device)
        self._fresh = torch.zeros(self.slots, dtype=torch.int32, device=device)
        self._clock = torch.zeros(1, dtype=torch.int32, device=device)
        # By the card's own count (kernels/placement.py).
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        # What copies for guesses read: not freed, since nothing waits for these copies.
        self._ahead: list[tuple[torch.Tensor, torch.Tensor]] = []
        both = torch.arange(2 * self.num_experts, dtype=torch.int32, device=device)
        self._buffers = both.view(2, self.num_experts)
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._computed: list[torch.cuda.Event | None] = [None, None]
        self._swept: int | None = None
        self._landed: torch.cuda.Event | None = None  # the layer's missing experts are there
        self._loads: torch.Tensor | None = None  # read by copies until then

    @property
    def stats(self) -> TierStats:
        """Counts since the model was opened; asks the card."""
        misses, wanted, guessed, used = self._counts.tolist()
        swept, record = self._pass_stats, self.arena.record_bytes
        return TierStats(
            wanted=wanted + swept.wanted,
            device_hits=wanted - misses - used,
            ram_hits=misses + used + swept.ram_hits,
            copied_bytes=(misses + guessed) * record + swept.copied_bytes,
            idle_bytes=(guessed - used) * record,
        )

    @property
    def wants_ahead(self) -> bool:
        """Only in a captured graph, whose memory stays: elsewhere copies could outlive what they
        read. And under the interpreter, where nothing runs beside anything."""
        return self._stream is None or torch.cuda.is_current_stream_capturing()

    # RoutedExperts.

    def begin(
        self, layer: int, ids: torch.Tensor, ahead: tuple[int, torch.Tensor] | None = None
    ) -> DeviceTicket:
        """Copies of what is missing, then of what the next layer is likely to miss, are started."""
        if len(ids) <= FEW_TOKENS:
            self._loads = self._place(layer, ids, guess=False)
            self._send(layer, ids, self._loads)
            if ahead is not None:
                self._guess(*ahead)
                self.routed.rejoin()
        return DeviceTicket(layer, ids)

    def finish(
        self, ticket: DeviceTicket, x: torch.Tensor | Normed, weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """out [T, H] += the weighted experts of x."""
        if len(ticket.ids) <= FEW_TOKENS:
            if self._landed is not None:
                self.clock.phase = COPIES
                torch.cuda.current_stream().wait_event(self._landed)
                self.clock.phase = "experts"
            slots = self._table[self._key(ticket.layer) :][: self.num_experts]
            self.routed.add(x, ticket.ids, weights, self.arena, slots, out)
        else:
            assert isinstance(x, torch.Tensor)
            call = ManyTokens(x, ticket.ids, self.arena, self.num_experts)
            self._sweep(ticket.layer, call)
            call.finish(weights, out)

    def end_step(self) -> None:
        """The forward pass is over: a sweep begins anew."""
        self._swept = None
        if self._stream is None:
            self._ahead.clear()

    def _key(self, layer: int) -> int:
        return self._rows[layer] * self.num_experts

    def _place(self, layer: int, ids: torch.Tensor, *, guess: bool) -> torch.Tensor:
        """Slots for the experts -> those that each pair's record has to be copied into, or -1."""
        loads = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
        kernels.place[(1,)](
            ids, self._table, self._owner, self._stamp, self._fresh, self._clock, loads,
            self._counts, self._key(layer), ids.numel(), SLOTS=self.slots,
            BLOCK=next_power(self.slots), GUESS=guess, num_warps=8,
        )  # fmt: skip
        return loads

    def _send(self, layer: int, ids: torch.Tensor, loads: torch.Tensor) -> None:
        """The copies, behind those before, and an event for their end."""
        if self._stream is None:
            self._copy(layer, ids, loads)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._copy(layer, ids, loads)
            self._landed = self._stream.record_event()

    def _copy(self, layer: int, ids: torch.Tensor, loads: torch.Tensor) -> None:
        words = self.arena.record_bytes // 4
        kernels.fetch[(_PIECES,)](
            self._host, self.arena.words, ids, loads, self._key(layer), ids.numel(),
            RECORD_WORDS=words, PIECE=triton.cdiv(words, _PIECES * 4) * 4, BLOCK=_COPY_WORDS,
            num_warps=8,
        )  # fmt: skip

    def _guess(self, layer: int, ids: torch.Tensor) -> None:
        """Send for the likeliest of the experts that a layer may want; nothing waits for them."""
        landed = self._landed
        with self.routed.aside():
            likely = ids[:, :_GUESSES].contiguous()
            loads = self._place(layer, likely, guess=True)
            self._send(layer, likely, loads)
        self._landed = landed
        self._ahead.append((likely, loads))

    def _sweep(self, layer: int, call: ManyTokens) -> None:
        row = self._rows[layer]
        if self._swept != row:
            self._vacate(2 * self.num_experts)
            self._computed = [self._now(), self._now()]
            self._load_layer(row)
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        call.run(self._buffers[row % 2])
        self._computed[row % 2] = self._now()
        if row + 1 < len(self.layers):
            self._load_layer(row + 1)

    def _load_layer(self, row: int) -> None:
        """The layer's records, which lie together in RAM, into its buffer: one copy."""
        size = self.num_experts * self.arena.record_bytes // 4
        source = self._host[row * size : (row + 1) * size]
        target = self.arena.words[row % 2 * size :][:size]
        if self._stream is None:
            target.copy_(source)
        else:
            after = self._computed[row % 2]
            assert after is not None
            self._stream.wait_event(after)
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
        self._swept = row
        self._pass_stats.wanted += self.num_experts
        self._pass_stats.ram_hits += self.num_experts
        self._pass_stats.copied_bytes += 4 * size

    def _vacate(self, count: int) -> None:
        """The first slots lose their experts."""
        self._table[self._table < count] = -1
        self._owner[:count] = -1
        self._stamp[:count] = 0
        self._fresh[:count] = 0

    def _now(self) -> torch.cuda.Event | None:
        return None if self._stream is None else torch.cuda.current_stream().record_event()
