"""From a packed model and settings to an engine on a GPU: the sum first, then memory, then weights.

Imported only where a GPU is used: this is what brings in torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from flashmoe import _native
from flashmoe.experts.budget import Budget
from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.copies import CopyQueue
from flashmoe.experts.device import DeviceExperts
from flashmoe.experts.hybrid import HostShare
from flashmoe.experts.mapped import MappedExperts, preload
from flashmoe.experts.memory import Limit, read_system_memory
from flashmoe.experts.staging import staging_slots
from flashmoe.experts.stats import CacheStats
from flashmoe.experts.tiers import DeviceSlots
from flashmoe.generate.graphed import GraphedEngine, warm_up
from flashmoe.layers.rope import RotaryTable
from flashmoe.loading import LoadedModel, load_weights, resident_memory, text_parts
from flashmoe.models.decoder import Decoder
from flashmoe.models.registry import load_family
from flashmoe.ops.base import Ops
from flashmoe.ops.card_sizes import floor_device_slots, workspace_bytes
from flashmoe.ops.cpu import CpuOps
from flashmoe.ops.cuda import memory
from flashmoe.ops.cuda.backend import CudaOps
from flashmoe.ops.cuda.rotary import DeviceRotary
from flashmoe.ops.cuda.routed import ExpertArena
from flashmoe.ops.threads import default_threads
from flashmoe.planning import (
    ModelFacts,
    card_budget,
    card_weight_bytes,
    pinned_slots,
    read_facts,
)
from flashmoe.settings import EngineSettings
from flashmoe.sizes import parse_size
from flashmoe.store.model import StoredModel, open_model

# Pinned slots through which the experts pass on their way in when all of them stay on the card.
_STAGING_SLOTS = 64
# Seconds per layer by which a step is slower where the host plans instead of the card, measured on
# an H200 (docs/cuda.md): what the CPU has to save before it may take a share.
_HOST_PLANNING = 3e-4
# Copies by which the bus is measured.
_COPIES = 32
# What the process takes beyond what is resident when the slots in RAM are counted.
_HOST_RESERVE = 256 << 20
_INTERPRETED_VRAM = 16 << 30


@dataclass(frozen=True)
class CardPlan:
    """What will be on the card."""

    facts: ModelFacts
    prefill_chunk: int
    budget: Budget


@dataclass
class CardExperts:
    """flashmoe.loading.ExpertStore of all tiers."""

    experts: DeviceExperts | MappedExperts
    ram: ExpertCache

    staging: int = 0

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
class CardMemory:
    """flashmoe.loading.Keeper: passes of one size, whose memory was taken at load."""

    prefill_chunk: int

    @property
    def resizes(self) -> Mapping[str, int]:
        """Nothing changes its size."""
        return {}

    def chunk(self, tokens: int) -> int:
        """Tokens per pass, whatever the prompt."""
        return self.prefill_chunk

    def sweep_chunk(self, tokens: int) -> int:
        """As `chunk`: sweeps run on the host only."""
        return self.prefill_chunk

    def prompt(self, chunk: int) -> AbstractContextManager[None]:
        """There is room always."""
        return nullcontext()

    def after_pass(self, tokens: int, seconds: float) -> None:
        """Nothing to learn from it."""


def load_on_card(
    path: Path, settings: EngineSettings, device: torch.device | None = None
) -> LoadedModel:
    """Open a pack and build its engine on a card; errors as for flashmoe.load.

    device: default the first card; the CPU under Triton's interpreter (tests).
    """
    with memory.within_limit("this model and a chunk of a prompt"):
        return _load(path, settings, device)


def _load(path: Path, settings: EngineSettings, device: torch.device | None) -> LoadedModel:
    pack = open_model(path)
    family = load_family(pack.manifest.family)
    device = device or memory.open_card()
    plan = make_card_plan(pack, read_facts(pack, family, settings), settings, device)
    if device.type == "cuda":
        memory.cap_tensors(device, plan.budget.limit.nbytes - memory.CONTEXT_BYTES)
    card = CudaOps(device)
    ops = cast(Ops, card)  # all that layers use; experts are DeviceExperts' business
    card.take_weights(card_weight_bytes(pack, plan.facts))
    arena = resident_memory(pack)
    weights = load_weights(pack, ops, arena)
    del arena  # the weights are copied by now
    store = _open_tiers(pack, plan, settings, card)
    keeper = CardMemory(plan.prefill_chunk)
    engine = GraphedEngine(
        decoder=_on_card(family.build(plan.facts.config, weights), card),
        experts=cast(Any, store.experts),
        ops=ops,
        memory=keeper,
        context_length=plan.facts.context_length,
        vocab_size=plan.facts.config.vocab_size,
        kv_dtype=f"f{plan.facts.kv_itemsize}",
        num_experts_per_tok=plan.facts.config.num_experts_per_tok,
        tensor_bytes=plan.budget.limit.nbytes - memory.CONTEXT_BYTES,
    )
    if device.type == "cuda":
        warm_up(engine, plan.prefill_chunk)
    return LoadedModel(
        path=path,
        family=pack.manifest.family,
        config=plan.facts.config,
        engine=engine,
        cache=store,
        keeper=keeper,
        rows=None,
        text=text_parts(pack),
        fixed_figures=_fixed_figures(pack, plan, store, settings),
    )


def _on_card(decoder: Decoder, ops: CudaOps) -> Decoder:
    """With rotations made there."""
    table = decoder.rope
    assert isinstance(table, RotaryTable)
    rope: Any = DeviceRotary(table.inv_freq, table.scale, ops)
    return dataclasses.replace(decoder, rope=rope)


def make_card_plan(
    pack: StoredModel, facts: ModelFacts, settings: EngineSettings, device: torch.device
) -> CardPlan:
    """Decide what goes on the card; raises MemoryBudgetError, with the sum, below the floor."""
    chunk, fitting = card_budget(pack, facts, _limit(settings.vram, device))
    return CardPlan(facts, chunk, fitting)


def _limit(vram: int | str | None, device: torch.device) -> Limit:
    """The tighter of --vram and what is free on the card; our own context is there already."""
    if device.type != "cuda":  # Triton's interpreter: any limit is as good as another
        return Limit(_INTERPRETED_VRAM, "the interpreter")
    card = memory.card_memory(device)
    free = Limit(min(card.free + memory.CONTEXT_BYTES, card.total), "free on the card")
    if vram is None:
        return Limit(int(free.nbytes * 0.95), "95% of what is free on the card")
    if isinstance(vram, str):
        vram = parse_size(vram, option="--vram", whole=card.total)
    return min(free, Limit(vram, "--vram"), key=lambda limit: limit.nbytes)


def _open_tiers(
    pack: StoredModel, plan: CardPlan, settings: EngineSettings, ops: CudaOps
) -> CardExperts:
    layout, layers = pack.manifest.experts, [layer.layer for layer in pack.manifest.layers]
    total = len(layers) * layout.num_experts
    words = plan.budget.slots * layout.record_bytes // 4
    arena = ExpertArena(
        torch.empty(words, dtype=torch.int32, device=ops.device),
        layout.record_bytes,
        layout,
        torch.empty(
            workspace_bytes(layout, layout.num_experts), dtype=torch.uint8, device=ops.device
        ),
    )
    everything = plan.budget.slots >= total
    k = plan.facts.config.num_experts_per_tok
    slots = min(_STAGING_SLOTS, total) if everything else _ram_slots(pack, plan, settings)
    threads = settings.threads or default_threads()
    pinned = memory.PinnedArena(slots * layout.record_bytes, threads, ops.device)
    ram = ExpertCache(
        pack,
        pinned,
        _native.Reader(settings.readers),
        slot_bytes=layout.record_bytes,
        staging=_staging(slots, total, k, settings) if not everything else 0,
        verify=settings.verify,
    )
    copies = CopyQueue(pinned.bytes(), pinned.address, arena)
    least = floor_device_slots(layout.num_experts, k)
    by_card = slots >= total and plan.budget.slots >= least  # the card can plan by itself
    host = None
    if settings.hybrid and not everything:
        host = HostShare(layout, len(layers), k, ops.device, CpuOps(threads, settings.isa))
        end = pinned.address + slots * layout.record_bytes
        records = range(pinned.address, end, layout.record_bytes)
        host.measure(copies.seconds_per_record(_COPIES), records)
        if host.rates.saves(k) <= (_HOST_PLANNING if by_card else 0.0):
            host = None  # without it, it is faster
    if by_card and not everything and host is None:
        preload(ram, pinned.address, layers, layout.num_experts, layout.record_bytes)
        mapped = MappedExperts(
            arena, layers, layout.num_experts, pinned, ops.routed, plan.budget.slots, ops.clock
        )
        return CardExperts(mapped, ram)
    experts = DeviceExperts(
        arena=arena,
        layers=layers,
        num_experts=layout.num_experts,
        ram=ram,
        copies=copies,
        routed=ops.routed,
        slots=DeviceSlots(plan.budget.slots),
        host=host,
    )
    store = CardExperts(experts, ram)
    if everything:
        experts.fill()
    return store


def _staging(slots: int, total: int, k: int, settings: EngineSettings) -> int:
    """Slots in RAM for reads on a guess; "auto" is off: on a card it was not seen to pay yet."""
    return staging_slots(slots, total, k, keep=True) if settings.prefetch == "on" else 0


def _hybrid(store: CardExperts, settings: EngineSettings, k: int) -> str:
    """What became of --hybrid, in words; empty if it was not asked for."""
    if not settings.hybrid:
        return ""
    host = None if isinstance(store.experts, MappedExperts) else store.experts.host
    if host is None:
        reason = "every expert is on the card" if store.resident else "the card alone is faster"
        return f"hybrid has no effect: {reason}"
    return (
        f"hybrid: the CPU computes up to {host.rates.on_host(k)} of {k} experts out of RAM"
        f" ({host.rates.compute * 1e6:.0f} us each, {host.rates.copy * 1e6:.0f} us to copy one):"
        " results differ by rounding, and from run to run"
    )


def _ram_slots(pack: StoredModel, plan: CardPlan, settings: EngineSettings) -> int:
    """Pinned slots in RAM: what --ram leaves beside the process."""
    process = read_system_memory().process + _HOST_RESERVE
    return pinned_slots(pack, plan.facts, settings, process)


def _fixed_figures(
    pack: StoredModel, plan: CardPlan, store: CardExperts, settings: EngineSettings
) -> dict[str, Any]:
    return {
        "cache_budget_slots": store.slots,
        "resident_bytes": pack.resident_bytes,
        "kv_bytes": plan.facts.state_bytes,
        "num_layers": plan.facts.config.num_hidden_layers,
        "direct_io": not store.ram.buffered_files,
        "experts_per_token": plan.facts.config.num_experts_per_tok,
        "native_experts_per_token": plan.facts.native_experts_per_token,
        "isa": "cuda",
        "hybrid": _hybrid(store, settings, plan.facts.config.num_experts_per_tok),
        "threads": settings.threads or default_threads(),
        "device": "cuda",
        "device_slots": plan.budget.slots,
        "device_bytes": plan.budget.total,
    }
