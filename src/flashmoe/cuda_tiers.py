"""Opens the tiers of experts of a card: its slots, those in RAM, the reader, who plans.

Imported only where a GPU is used: this brings in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flashmoe import _native
from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.copies import CopyQueue
from flashmoe.experts.device import DeviceExperts
from flashmoe.experts.hybrid import HostShare
from flashmoe.experts.mapped import MappedExperts, preload
from flashmoe.experts.staging import staging_slots
from flashmoe.experts.stats import CacheStats
from flashmoe.experts.tiers import DeviceSlots
from flashmoe.ops.card_sizes import floor_device_slots, workspace_bytes
from flashmoe.ops.cpu import CpuOps
from flashmoe.ops.cuda import memory
from flashmoe.ops.cuda.backend import CudaOps
from flashmoe.ops.cuda.routed import ExpertArena
from flashmoe.ops.threads import default_threads
from flashmoe.settings import EngineSettings
from flashmoe.store.format import ExpertLayout
from flashmoe.store.model import StoredModel

# Pinned slots through which the experts pass on their way in when all of them stay on the card.
_STAGING_SLOTS = 64
# Seconds per layer by which a step is slower where the host plans instead of the card, measured on
# an H200 (docs/cuda.md): what the CPU has to save before it may take a share.
_HOST_PLANNING = 3e-4
# Copies by which the bus is measured.
_COPIES = 32


@dataclass
class CardExperts:
    """flashmoe.loading.ExpertStore of all tiers."""

    experts: DeviceExperts | MappedExperts
    ram: ExpertCache

    @property
    def staging(self) -> int:
        """Of those in RAM, set apart for reads on a guess."""
        return 0 if self.resident else self.ram.staging

    @property
    def slots(self) -> int:
        """Experts that RAM keeps for the card; 0 if all are there."""
        return 0 if self.resident else self.ram.slots

    @property
    def nbytes(self) -> int:
        """Pinned memory for experts."""
        return 0 if self.resident else self.ram.nbytes

    @property
    def resident(self) -> bool:
        """Whether every expert is on the card."""
        return isinstance(self.experts, DeviceExperts) and self.experts.resident

    def reader_stats(self) -> Mapping[str, float]:
        """What the reader counts."""
        return self.ram.reader_stats()

    @property
    def stats(self) -> CacheStats:
        """hits: experts that were on the card or in RAM; misses: those read from disk."""
        tiers = self.experts.stats
        return CacheStats(
            hits=tiers.device_hits + tiers.ram_hits,
            misses=tiers.disk_misses,
            bytes_read=self.ram.stats.bytes_read,
            prefetched=self.ram.stats.prefetched,
            prefetch_wasted=self.ram.stats.prefetch_wasted,
            wait_seconds=self.ram.stats.wait_seconds,
        )

    def close(self) -> None:
        """Wait for copies, stop the reads, let the memory go."""
        if isinstance(self.experts, DeviceExperts) and self.experts.copies is not None:
            self.experts.copies.settle()
        if self.experts.arena.words.device.type == "cuda":
            torch.cuda.synchronize()
        self.ram.close()


@dataclass(frozen=True)
class Opening:
    """What the tiers are opened from.

    k: experts per token. on_card: slots on the card. in_ram: pinned slots in RAM, where not all
    experts fit on the card.
    """

    pack: StoredModel
    settings: EngineSettings
    ops: CudaOps
    k: int
    on_card: int
    in_ram: int

    @property
    def everything(self) -> bool:
        """Whether the card holds all experts: then they only pass through RAM."""
        return self.on_card >= self.total

    @property
    def slots(self) -> int:
        """Pinned ones."""
        return min(_STAGING_SLOTS, self.total) if self.everything else self.in_ram

    @property
    def layout(self) -> ExpertLayout:
        """Of a record."""
        return self.pack.manifest.experts

    @property
    def layers(self) -> list[int]:
        """Those with experts."""
        return [layer.layer for layer in self.pack.manifest.layers]

    @property
    def total(self) -> int:
        """Experts of all layers."""
        return len(self.pack.manifest.layers) * self.layout.num_experts

    @property
    def threads(self) -> int:
        """Of the CPU."""
        return self.settings.threads or default_threads()

    @property
    def by_card(self) -> bool:
        """Whether the card can plan by itself: RAM holds all experts, the card a layer's."""
        least = floor_device_slots(self.layout.num_experts, self.k)
        return self.slots >= self.total and self.on_card >= least


def open_tiers(opening: Opening) -> CardExperts:
    """Take the memory, start the reader and bring on the card what has to be there at once.

    Raises MemoryBudgetError, StorageError, ChecksumError.
    """
    ops = opening.ops
    arena = _card_arena(opening)
    pinned = memory.PinnedArena(
        opening.slots * opening.layout.record_bytes, opening.threads, ops.device
    )
    ram = _ram_cache(opening, pinned)
    copies = CopyQueue(pinned.bytes(), pinned.address, arena)
    host = _host_share(opening, pinned, copies)
    if opening.by_card and not opening.everything and host is None:
        return CardExperts(_mapped(opening, arena, pinned, ram), ram)
    experts = DeviceExperts(
        arena=arena,
        layers=opening.layers,
        num_experts=opening.layout.num_experts,
        ram=ram,
        copies=copies,
        routed=ops.routed,
        slots=DeviceSlots(opening.on_card),
        host=host,
    )
    if opening.everything:
        experts.fill()
    return CardExperts(experts, ram)


def _card_arena(opening: Opening) -> ExpertArena:
    """Slots on the card, and the workspace of dequantised experts."""
    layout, device = opening.layout, opening.ops.device
    words = opening.on_card * layout.record_bytes // 4
    workspace = workspace_bytes(layout, layout.num_experts)
    return ExpertArena(
        torch.empty(words, dtype=torch.int32, device=device),
        layout.record_bytes,
        layout,
        torch.empty(workspace, dtype=torch.uint8, device=device),
    )


def _ram_cache(opening: Opening, pinned: memory.PinnedArena) -> ExpertCache:
    staging = 0
    if not opening.everything:
        staging = _staging(opening.slots, opening.total, opening.k, opening.settings)
    return ExpertCache(
        opening.pack,
        pinned,
        _native.Reader(opening.settings.readers),
        slot_bytes=opening.layout.record_bytes,
        staging=staging,
        verify=opening.settings.verify,
    )


def _host_share(
    opening: Opening, pinned: memory.PinnedArena, copies: CopyQueue
) -> HostShare | None:
    """The CPU's share of the experts where --hybrid asks for it and it was measured to pay."""
    if not opening.settings.hybrid or opening.everything:
        return None
    layout, k, ops = opening.layout, opening.k, opening.ops
    cpu = CpuOps(opening.threads, opening.settings.isa)
    host = HostShare(layout, len(opening.layers), k, ops.device, cpu)
    end = pinned.address + opening.slots * layout.record_bytes
    records = range(pinned.address, end, layout.record_bytes)
    host.measure(copies.seconds_per_record(_COPIES), records)
    least = _HOST_PLANNING if opening.by_card else 0.0
    return host if host.rates.saves(k) > least else None


def _mapped(
    opening: Opening, arena: ExpertArena, pinned: memory.PinnedArena, ram: ExpertCache
) -> MappedExperts:
    """Experts that the card fetches from RAM by itself: RAM holds all of them from here on."""
    layout, layers, ops = opening.layout, opening.layers, opening.ops
    preload(ram, pinned.address, layers, layout.num_experts, layout.record_bytes)
    slots = opening.on_card
    return MappedExperts(arena, layers, layout.num_experts, pinned, ops.routed, slots, ops.clock)


def _staging(slots: int, total: int, k: int, settings: EngineSettings) -> int:
    """Slots in RAM for reads on a guess; "auto" is off: on a card it was not seen to pay yet."""
    return staging_slots(slots, total, k, keep=True) if settings.prefetch == "on" else 0
