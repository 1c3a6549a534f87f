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

from flashmoe.cuda_tiers import CardExperts, Opening, open_tiers
from flashmoe.experts.budget import Budget
from flashmoe.experts.mapped import MappedExperts
from flashmoe.experts.memory import Limit, read_system_memory
from flashmoe.generate.graphed import GraphedEngine, warm_up
from flashmoe.layers.rope import RotaryTable
from flashmoe.loading import LoadedModel, load_weights, resident_memory, text_parts
from flashmoe.models.decoder import Decoder, Weights
from flashmoe.models.registry import load_family
from flashmoe.ops.base import Ops
from flashmoe.ops.cuda import memory
from flashmoe.ops.cuda.backend import CudaOps
from flashmoe.ops.cuda.rotary import DeviceRotary
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

# What the process takes beyond what is resident when the slots in RAM are counted.
_HOST_RESERVE = 256 << 20
_INTERPRETED_VRAM = 16 << 30


@dataclass(frozen=True)
class CardPlan:
    """What will be on the card."""

    facts: ModelFacts
    prefill_chunk: int
    budget: Budget

    @property
    def tensor_bytes(self) -> int:
        """What torch may take: all but the context of CUDA."""
        return self.budget.limit.nbytes - memory.CONTEXT_BYTES


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
        memory.cap_tensors(device, plan.tensor_bytes)
    card = CudaOps(device)
    weights = _weights_on_card(pack, plan, card)
    store = open_tiers(_opening(pack, plan, settings, card))
    keeper = CardMemory(plan.prefill_chunk)
    decoder = _on_card(family.build(plan.facts.config, weights), card)
    engine = _engine(plan, decoder, store, card, keeper)
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


def _weights_on_card(pack: StoredModel, plan: CardPlan, card: CudaOps) -> Weights:
    """Copies of the resident weights; what they were read into is given back."""
    card.take_weights(card_weight_bytes(pack, plan.facts))
    return load_weights(pack, cast(Ops, card), resident_memory(pack))


def _opening(pack: StoredModel, plan: CardPlan, settings: EngineSettings, card: CudaOps) -> Opening:
    k, on_card = plan.facts.config.num_experts_per_tok, plan.budget.slots
    total = len(pack.manifest.layers) * pack.manifest.experts.num_experts
    in_ram = 0 if on_card >= total else _ram_slots(pack, plan, settings)
    return Opening(pack, settings, card, k, on_card, in_ram)


def _engine(
    plan: CardPlan, decoder: Decoder, store: CardExperts, card: CudaOps, keeper: CardMemory
) -> GraphedEngine:
    facts = plan.facts
    return GraphedEngine(
        decoder=decoder,
        experts=cast(Any, store.experts),
        ops=cast(Ops, card),  # all that layers use; experts are DeviceExperts' business
        memory=keeper,
        context_length=facts.context_length,
        vocab_size=facts.config.vocab_size,
        kv_dtype=f"f{facts.kv_itemsize}",
        num_experts_per_tok=facts.config.num_experts_per_tok,
        tensor_bytes=plan.tensor_bytes,
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
        "cache_budget_slots": store.slots + store.staging,
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
