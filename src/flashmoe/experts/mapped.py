"""Routed experts on a card, all of them also in pinned RAM: the card plans and copies by itself.

Nothing waits for the host, so that a whole token is one captured graph even where experts are
missing. Prompts sweep through whole layers, the next one coming in while one is computed.
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
from flashmoe.ops.cuda.handles import Normed
from flashmoe.ops.cuda.kernels import placement as kernels
from flashmoe.ops.cuda.products import FEW_TOKENS, next_power
from flashmoe.ops.cuda.routed import ExpertArena, ManyTokens, RoutedProducts

# Programs that copy one record: enough reads in flight to fill the bus even for a single miss.
_PIECES = 64
_COPY_WORDS = 4096


def floor_device_slots(num_experts: int, num_experts_per_tok: int) -> int:
    """Slots from which the card can plan by itself: two layers, or the experts of a few tokens."""
    return max(2 * num_experts, FEW_TOKENS * num_experts_per_tok)


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
    static: bool = True
    wants_ahead: bool = False
    _pass_stats: TierStats = field(default_factory=TierStats)

    def __post_init__(self) -> None:
        device, total = self.arena.words.device, len(self.layers) * self.num_experts
        self._rows = {layer: row for row, layer in enumerate(self.layers)}
        self._host = self.pinned.bytes().view(torch.int32)
        self._table = torch.full((total,), -1, dtype=torch.int32, device=device)
        self._owner = torch.full((self.slots,), -1, dtype=torch.int32, device=device)
        self._stamp = torch.zeros(self.slots, dtype=torch.int32, device=device)
        self._clock = torch.zeros(1, dtype=torch.int32, device=device)
        # Misses, and pairs that asked, by the card's own count.
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        both = torch.arange(2 * self.num_experts, dtype=torch.int32, device=device)
        self._buffers = both.view(2, self.num_experts)
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._computed: list[torch.cuda.Event | None] = [None, None]
        self._swept: int | None = None

    @property
    def stats(self) -> TierStats:
        """Counts since the model was opened; asks the card."""
        misses, wanted = self._counts.tolist()
        swept = self._pass_stats
        return TierStats(
            wanted=wanted + swept.wanted,
            device_hits=wanted - misses,
            ram_hits=misses + swept.ram_hits,
            copied_bytes=misses * self.arena.record_bytes + swept.copied_bytes,
        )

    # RoutedExperts.

    def begin(self, layer: int, ids: torch.Tensor, ahead: None = None) -> DeviceTicket:
        """Nothing to ask the host for."""
        return DeviceTicket(layer, ids)

    def finish(
        self, ticket: DeviceTicket, x: torch.Tensor | Normed, weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """out [T, H] += the weighted experts of x."""
        if len(ticket.ids) <= FEW_TOKENS:
            self._fetch(ticket.layer, ticket.ids)
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

    def _key(self, layer: int) -> int:
        return self._rows[layer] * self.num_experts

    def _fetch(self, layer: int, ids: torch.Tensor) -> None:
        """Slots for the experts, and their records into those that lacked them."""
        pairs, device = ids.numel(), ids.device
        loads = torch.empty(pairs, dtype=torch.int32, device=device)
        kernels.place[(1,)](
            ids, self._table, self._owner, self._stamp, self._clock, loads, self._counts,
            self._key(layer), pairs, SLOTS=self.slots, BLOCK=next_power(self.slots),
            num_warps=8,
        )  # fmt: skip
        words = self.arena.record_bytes // 4
        kernels.fetch[(_PIECES, pairs)](
            self._host, self.arena.words, ids, loads, self._key(layer), RECORD_WORDS=words,
            PIECE=triton.cdiv(words, _PIECES * 4) * 4, BLOCK=_COPY_WORDS, num_warps=8,
        )  # fmt: skip

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

    def _now(self) -> torch.cuda.Event | None:
        return None if self._stream is None else torch.cuda.current_stream().record_event()
