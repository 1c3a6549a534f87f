"""Routed experts on a card: what is not there comes from RAM, and what is not in RAM from disk.

Copies run on a stream of their own. An expert's record goes disk -> pinned slot -> device slot and
is computed from there, always by the same kernels: results do not depend on where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.ticket import Ticket
from flashmoe.experts.tiers import DeviceSlots, Placement, TierStats, waves
from flashmoe.ops.cuda.handles import Normed
from flashmoe.ops.cuda.products import FEW_TOKENS
from flashmoe.ops.cuda.routed import ExpertArena, ManyTokens, RoutedProducts

_ALL, _HITS, _LOADS = range(3)  # rows of a layer's slot table


class CopyQueue:
    """Copies of records out of pinned memory, on their own stream."""

    def __init__(self, pinned: torch.Tensor, address: int, arena: ExpertArena) -> None:
        self._pinned, self._address = pinned, address
        self._device = arena.words.device
        self._slots = arena.words.view(torch.uint8).view(-1, arena.record_bytes)
        self._stream = torch.cuda.Stream() if self._device.type == "cuda" else None
        self._open: Ticket | None = None
        self.copied_bytes = 0

    def pull(
        self,
        ram: ExpertCache,
        layer: int,
        loads: Mapping[int, int],
        after: torch.cuda.Event | None = None,
    ) -> None:
        """Start the copies of experts -> slots. after: what must have happened on the card before.

        Returns when the last copy is queued; where the disk is involved that takes its time.
        """
        self.settle()
        experts = list(loads)
        ticket = ram.begin(layer, experts)
        self._open = ticket
        if after is not None and self._stream is not None:
            self._stream.wait_event(after)
        left = len(experts)
        for batch in ticket.batches():
            for index, address in batch:
                self._copy(address - self._address, loads[experts[index]])
            left -= len(batch)
            if left == 0:
                break  # what was handed out last stays held until `settle`
            self._wait()

    def settle(self) -> None:
        """Wait until the copies have left RAM, whose slots may be overwritten from now on."""
        if self._open is not None:
            self._wait()
            self._open.close()
            self._open = None

    def before_compute(self) -> None:
        """Device work from now on comes after the copies so far."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def now(self) -> torch.cuda.Event | None:
        """All device work so far, as something that copies can wait for."""
        return None if self._stream is None else torch.cuda.current_stream().record_event()

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _copy(self, offset: int, slot: int) -> None:
        target = self._slots[slot]
        source = self._pinned[offset : offset + len(target)]
        if self._stream is None:
            target.copy_(source)
        else:
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
        self.copied_bytes += len(target)


@dataclass
class DeviceTicket:
    """What DeviceExperts.begin returns: the layer, its ids, where its experts are or will be."""

    layer: int
    ids: torch.Tensor
    placement: Placement | None = None

    def __enter__(self) -> DeviceTicket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open here: the queue settles before its next use."""


@dataclass
class DeviceExperts:
    """flashmoe.layers.moe.RoutedExperts in an arena on the card, over an ExpertCache in RAM.

    With a slot for every expert, all are brought in by `fill`; from then on ids never leave the
    card, and whole tokens can be captured. ram is None from then on.
    """

    arena: ExpertArena
    layers: Sequence[int]
    num_experts: int
    ram: ExpertCache | None
    copies: CopyQueue | None
    routed: RoutedProducts
    slots: DeviceSlots
    residents: None = None
    wants_ahead: bool = False
    stats: TierStats = field(default_factory=TierStats)

    def __post_init__(self) -> None:
        shape = (len(self.layers), 3, self.num_experts)
        device = self.arena.words.device
        self._rows = {layer: row for row, layer in enumerate(self.layers)}
        self._table = torch.zeros(shape, dtype=torch.int32, device=device)
        self._computed: list[torch.cuda.Event | None] = [None, None]  # per buffer of a sweep
        self._swept: int | None = None  # the layer that a sweep has loaded last

    @property
    def resident(self) -> bool:
        """Whether every expert is on the card."""
        return self.ram is None

    @property
    def static(self) -> bool:
        """Whether a step needs nothing from the host."""
        return self.resident

    def table(self, layer: int) -> torch.Tensor:
        """int32 [3, E] on the card: slots of the layer's wanted experts; of those that were there;
        of those that are being copied. -1: not among them."""
        return self._table[self._rows[layer]]

    def fill(self) -> None:
        """Bring every expert in and let the RAM go; needs a slot for each."""
        assert self.ram is not None
        assert self.copies is not None
        assert self.slots.count >= len(self.layers) * self.num_experts
        for layer in self.layers:
            self.send(layer, self.decide(layer, range(self.num_experts)))
        self.copies.settle()
        self.ram.close()
        self.ram = self.copies = None

    # RoutedExperts.

    def begin(self, layer: int, ids: torch.Tensor, ahead: None = None) -> DeviceTicket:
        """Find out where the experts ids [T, K] are, and send for those that are elsewhere."""
        if self.resident or len(ids) > FEW_TOKENS:
            return DeviceTicket(layer, ids)
        return DeviceTicket(layer, ids, self.decide(layer, ids.reshape(-1).tolist()))

    def finish(
        self, ticket: DeviceTicket, x: torch.Tensor | Normed, weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """out [T, H] += the weighted experts of x."""
        layer, ids = ticket.layer, ticket.ids
        if self.resident:
            self.routed.add(x, ids, weights, self.arena, self.table(layer)[_ALL], out)
        elif len(ids) <= FEW_TOKENS:
            assert ticket.placement is not None
            hidden = self.compute_hits(layer, x, ids)
            self.send(layer, ticket.placement)
            self.compute_rest(layer, x, ids, weights, hidden, out)
        else:
            self._finish_many(layer, x, ids, weights, out)

    def end_step(self) -> None:
        """The forward pass is over: nothing that was read ahead is kept."""
        self._swept = None

    # A few tokens: also called piecewise, inside and between captured graphs.

    def decide(self, layer: int, ids: Sequence[int]) -> Placement:
        """Give the experts `ids` slots and write the layer's slot table."""
        placement = self.slots.place(layer, sorted(set(ids)))
        self._write_table(layer, placement)
        return placement

    def send(self, layer: int, placement: Placement, after: torch.cuda.Event | None = None) -> None:
        """Start the copies, after an event; device work from now on sees the experts."""
        assert self.copies is not None
        self._pull(layer, placement, after)
        self.copies.before_compute()

    def _write_table(self, layer: int, placement: Placement) -> None:
        rows = np.full((3, self.num_experts), -1, dtype=np.int32)
        by_row = {_ALL: placement.slots, _HITS: placement.hits, _LOADS: placement.loads}
        for row, chosen in by_row.items():
            rows[row, list(chosen.keys())] = list(chosen.values())
        # From pageable memory: the values are taken before the call returns.
        self.table(layer).copy_(torch.from_numpy(rows))

    def compute_hits(self, layer: int, x: torch.Tensor | Normed, ids: torch.Tensor) -> torch.Tensor:
        """The inner rows of experts that were there -> [T * K, I], the others unwritten."""
        return self.routed.few_hidden(x, ids, self.arena, self.table(layer)[_HITS])

    def compute_rest(
        self, layer: int, x: torch.Tensor | Normed, ids: torch.Tensor, weights: torch.Tensor,
        hidden: torch.Tensor, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """The inner rows of the others, then out += everything, in routing order."""
        table = self.table(layer)
        self.routed.few_hidden(x, ids, self.arena, table[_LOADS], hidden)
        self.routed.few_down(hidden, ids, weights, self.arena, table[_ALL], out)

    def _pull(self, layer: int, placement: Placement, after: torch.cuda.Event | None) -> None:
        assert self.ram is not None
        assert self.copies is not None
        hits = self.ram.stats.hits
        if placement.loads:
            try:
                self.copies.pull(self.ram, layer, placement.loads, after)
            except BaseException:
                self.slots.abandon(placement)
                raise
        self.slots.landed(layer, placement)
        self.stats.wanted += len(placement.slots)
        self.stats.device_hits += len(placement.hits)
        self.stats.ram_hits += self.ram.stats.hits - hits
        self.stats.copied_bytes = self.copies.copied_bytes

    # Many tokens: nearly every expert is wanted.

    def _finish_many(
        self, layer: int, x: torch.Tensor | Normed, ids: torch.Tensor, weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        assert isinstance(x, torch.Tensor)
        call = ManyTokens(x, ids, self.arena, self.num_experts)
        if self.slots.count >= 2 * self.num_experts and ids.numel() >= 2 * self.num_experts:
            self._sweep(layer, call)
        else:
            self._in_waves(layer, ids, call)
        call.finish(weights, out)

    def _in_waves(self, layer: int, ids: torch.Tensor, call: ManyTokens) -> None:
        wanted = sorted(set(ids.reshape(-1).tolist()))
        here = frozenset(e for e in wanted if self.slots.residency.slot_of((layer, e)) is not None)
        assert self.copies is not None
        for wave in waves(wanted, here, self.slots.count):
            self.send(layer, self.decide(layer, wave), self.copies.now())
            call.run(self.table(layer)[_ALL])

    def _sweep(self, layer: int, call: ManyTokens) -> None:
        """All experts of the layer, through two buffers: the next layer's come meanwhile."""
        assert self.copies is not None
        row = self._rows[layer]
        if self._swept != layer:
            self.slots.vacate(2 * self.num_experts)
            self._computed = [self.copies.now()] * 2
            self._load_whole(layer)
        self.copies.before_compute()
        call.run(self.table(layer)[_ALL])
        self._computed[row % 2] = self.copies.now()
        if row + 1 < len(self.layers):
            self._load_whole(self.layers[row + 1])

    def _load_whole(self, layer: int) -> None:
        assert self.ram is not None
        assert self.copies is not None
        buffer, hits = self._rows[layer] % 2, self.ram.stats.hits
        first = buffer * self.num_experts
        slots = {expert: first + expert for expert in range(self.num_experts)}
        self.copies.pull(self.ram, layer, slots, self._computed[buffer])
        self._write_table(layer, Placement(slots, slots))
        self._swept = layer
        self.stats.wanted += self.num_experts
        self.stats.ram_hits += self.ram.stats.hits - hits
        self.stats.copied_bytes = self.copies.copied_bytes
