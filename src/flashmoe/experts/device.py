"""Routed experts on a card: what is not there comes from RAM, and what is not in RAM from disk.

Copies run on a stream of their own. An expert's record goes disk -> pinned slot -> device slot and
is computed from there, always by the same kernels: results do not depend on where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.copies import Beside, CopyQueue, nothing
from flashmoe.experts.hybrid import HostShare
from flashmoe.experts.tiers import DeviceSlots, Placement, TierStats, waves
from flashmoe.ops.cuda.handles import Normed
from flashmoe.ops.cuda.products import FEW_TOKENS
from flashmoe.ops.cuda.routed import ExpertArena, ManyTokens, RoutedProducts

_ALL, _HITS, _LOADS = range(3)  # rows of a layer's slot table


@dataclass
class DeviceTicket:
    """What DeviceExperts.begin returns: the layer, its ids, where its experts are or will be, and
    what to read ahead of another layer."""

    layer: int
    ids: torch.Tensor
    placement: Placement | None = None
    guess: tuple[int, list[int]] | None = None

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
    card, and whole tokens can be captured. ram is None from then on. host: computes experts of
    single tokens out of RAM, where the user allows it.
    """

    arena: ExpertArena
    layers: Sequence[int]
    num_experts: int
    ram: ExpertCache | None
    copies: CopyQueue | None
    routed: RoutedProducts
    slots: DeviceSlots
    host: HostShare | None = None
    residents: None = None
    stats: TierStats = field(default_factory=TierStats)

    def __post_init__(self) -> None:
        shape = (len(self.layers), 3, self.num_experts)
        device = self.arena.words.device
        self._rows = {layer: row for row, layer in enumerate(self.layers)}
        self._table = torch.zeros(shape, dtype=torch.int32, device=device)
        # What captured steps read slot tables from.
        self._staged = torch.empty(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._staged_rows = self._staged.numpy()
        self._computed: list[torch.cuda.Event | None] = [None, None]  # per buffer of a sweep
        self._swept: int | None = None  # the layer that a sweep has loaded last

    @property
    def resident(self) -> bool:
        """Whether every expert is on the card."""
        return self.ram is None

    @property
    def guesses(self) -> bool:
        """Whether the disk is read ahead: there is memory for it."""
        return self.ram is not None and self.ram.staging > 0

    @property
    def wants_ahead(self) -> bool:
        """For the interpreter: captured steps guess by themselves (generate/captured.py)."""
        return self.guesses and self.arena.words.device.type == "cpu"

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
            placement = self.decide(layer, range(self.num_experts))
            self._write_table(layer, placement)
            self.send(layer, placement)
        self.copies.settle()
        self.ram.close()
        self.ram = self.copies = None

    # RoutedExperts.

    def begin(
        self, layer: int, ids: torch.Tensor, ahead: tuple[int, torch.Tensor] | None = None
    ) -> DeviceTicket:
        """Find out where the experts ids [T, K] are, and send for those that are elsewhere."""
        guess = None
        if ahead is not None:
            self.routed.rejoin()
            guess = self.missing(ahead[0], ahead[1].reshape(-1).tolist())
        if self.resident or len(ids) > FEW_TOKENS:
            return DeviceTicket(layer, ids)
        placement = self.decide(layer, ids.reshape(-1).tolist(), alone=len(ids) == 1)
        self._write_table(layer, placement)
        return DeviceTicket(layer, ids, placement, guess)

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
            shared = self.host is not None and len(ids) == 1
            if shared:
                self.hand_over(layer, x, weights)
                self.synchronize()
            self.send(layer, ticket.placement, guess=ticket.guess, ids=ids.reshape(-1).tolist())
            self.compute_rest(layer, x, ids, weights, hidden, out, shared=shared)
        else:
            self._finish_many(layer, x, ids, weights, out)

    def end_step(self) -> None:
        """The forward pass is over: nothing that was read ahead is kept."""
        self._swept = None

    # A few tokens: also called piecewise, inside and between captured graphs.

    def decide(self, layer: int, ids: Sequence[int], *, alone: bool = False) -> Placement:
        """Give the experts `ids` slots. alone: they are one token's, which the CPU may help with,
        the likeliest first."""
        host = self._for_host(layer, ids) if alone and self.host is not None else ()
        placement = self.slots.place(layer, sorted(set(ids).difference(host)))
        return replace(placement, host=host) if host else placement

    def _for_host(self, layer: int, ids: Sequence[int]) -> tuple[int, ...]:
        """Of the experts in RAM only those that the CPU has computed by the time that the others
        are on the card: the least likely, so that what is likely comes to the card."""
        assert self.ram is not None
        assert self.host is not None
        self.host.forget(self._rows[layer])
        elsewhere = self.missing(layer, ids)[1]
        there = self.ram.in_memory(layer, np.array(elsewhere, dtype=np.int32))
        waiting = [expert for expert, here in zip(elsewhere, there, strict=True) if here]
        return tuple(waiting[len(waiting) - self.host.rates.on_host(len(waiting)) :])

    def missing(self, layer: int, ids: Sequence[int]) -> tuple[int, list[int]]:
        """The layer, and those of its experts that are not on the card."""
        slot_of = self.slots.residency.slot_of
        return layer, [expert for expert in ids if slot_of((layer, expert)) is None]

    def stage(self, layer: int, placement: Placement) -> None:
        """Write the layer's slot table where a captured `fetch_table` reads it."""
        self._staged_rows[self._rows[layer]] = self._table_of(placement)

    def fetch_table(self, layer: int) -> None:
        """Bring the staged slot table to the card."""
        self.table(layer).copy_(self._staged[self._rows[layer]], non_blocking=True)

    def send(
        self,
        layer: int,
        placement: Placement,
        after: torch.cuda.Event | None = None,
        guess: tuple[int, list[int]] | None = None,
        ids: Sequence[int] = (),
    ) -> None:
        """Start the copies, after an event; device work from now on sees the experts.

        guess: what to read ahead. ids: of the token, where the CPU takes a share.
        """
        assert self.copies is not None
        compute = self._share(layer, ids) if placement.host else nothing
        self._pull(layer, placement, after, Beside(guess, placement.host, compute))
        if placement.loads:
            self.copies.before_compute()

    def _share(self, layer: int, ids: Sequence[int]) -> Callable[[Mapping[int, int]], None]:
        host, row = self.host, self._rows[layer]
        assert host is not None
        return lambda addresses: host.compute(row, ids, addresses)

    def _write_table(self, layer: int, placement: Placement) -> None:
        # From pageable memory: the values are taken before the call returns.
        self.table(layer).copy_(torch.from_numpy(self._table_of(placement)))

    def _table_of(self, placement: Placement) -> NDArray[np.int32]:
        rows = np.full((3, self.num_experts), -1, dtype=np.int32)
        by_row = {_ALL: placement.slots, _HITS: placement.hits, _LOADS: placement.loads}
        for row, chosen in by_row.items():
            rows[row, list(chosen.keys())] = list(chosen.values())
        return rows

    def hand_over(self, layer: int, x: torch.Tensor | Normed, weights: torch.Tensor) -> None:
        """Start x [1, H] and weights [1, K] on their way to the CPU, if it takes a share."""
        if self.host is not None:
            values = x.computed() if isinstance(x, Normed) else x
            self.host.take(values, weights)

    def synchronize(self) -> None:
        """Wait for all device work so far."""
        if self.arena.words.device.type == "cuda":
            torch.cuda.current_stream().synchronize()

    def compute_hits(self, layer: int, x: torch.Tensor | Normed, ids: torch.Tensor) -> torch.Tensor:
        """The inner rows of experts that were there -> [T * K, I], the others unwritten."""
        return self.routed.few_hidden(x, ids, self.arena, self.table(layer)[_HITS])

    def compute_rest(
        self, layer: int, x: torch.Tensor | Normed, ids: torch.Tensor, weights: torch.Tensor,
        hidden: torch.Tensor, out: torch.Tensor, *, shared: bool = False,
    ) -> None:  # fmt: skip
        """The inner rows of the others, then out += everything, in routing order. shared: then what
        the CPU has computed."""
        table = self.table(layer)
        self.routed.few_hidden(x, ids, self.arena, table[_LOADS], hidden)
        self.routed.few_down(hidden, ids, weights, self.arena, table[_ALL], out)
        if shared and self.host is not None:
            self.host.add(self._rows[layer], out)

    def _pull(
        self,
        layer: int,
        placement: Placement,
        after: torch.cuda.Event | None,
        beside: Beside,
    ) -> None:
        assert self.ram is not None
        assert self.copies is not None
        hits = self.ram.stats.hits
        # Also where nothing is missing: guesses of this layer have to end.
        if placement.loads or placement.host or self.guesses:
            try:
                self.copies.pull(self.ram, layer, placement.loads, after, beside)
            except BaseException:
                self.slots.abandon(placement)
                raise
        self.slots.landed(layer, placement)
        self.stats.wanted += len(placement.slots) + len(placement.host)
        self.stats.on_host += len(placement.host)
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
            placement = self.decide(layer, wave)
            self._write_table(layer, placement)
            self.send(layer, placement, self.copies.now())
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
