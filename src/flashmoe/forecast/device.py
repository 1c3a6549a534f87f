"""Which device a model would run on here, and what of it a card has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flashmoe.errors import UsageError
from flashmoe.experts.memory import Limit, read_system_memory
from flashmoe.forecast.card import Tiers
from flashmoe.models.registry import load_family
from flashmoe.ops.devices import DeviceName, Gpu, missing_packages, pick_device, settle_device
from flashmoe.planning import card_budget, card_lacks, pinned_slots, read_facts
from flashmoe.settings import EngineSettings
from flashmoe.sizes import parse_size
from flashmoe.store.packed import PackedModel

ASSUMED_CARD: Final = "a card that is not here"
# What torch with CUDA takes of the host's memory: an assumption, rather too much.
TORCH_BYTES: Final = 3 << 29
_FREE_SHARE: Final = 0.95
INSTALL: Final = "pip install 'flashmoe[cuda]'"


@dataclass(frozen=True)
class Choice:
    """device, and why. card: the card that is planned for, None on the CPU."""

    device: DeviceName
    reason: str
    card: Gpu | None = None


def choose(pack: PackedModel, settings: EngineSettings, gpus: Sequence[Gpu]) -> Choice:
    """As `flashmoe run` would, for the first of `gpus`; one that is not here can be planned for.

    Raises UsageError for an unknown device, and for cuda where the model does not run on a card or
    there is neither a card nor --vram.
    """
    if settings.device == "auto":
        if reason := _unused(gpus, settings):
            return Choice("cpu", reason)
    elif settings.device != "cuda":
        return Choice("cpu", pick_device(settings.device)[1])
    card = gpus[0] if gpus else _assumed(settings)
    reason = f"{card.name}, after {INSTALL}" if missing_packages() else card.name
    device, reason = settle_device(reason, settings.device, card_lacks(pack.manifest))
    return Choice(device, reason, card if device == "cuda" else None)


def _unused(gpus: Sequence[Gpu], settings: EngineSettings) -> str:
    """Why --device auto would not use a card, "" if it would."""
    if not gpus:
        return "no NVIDIA driver"
    if missing := missing_packages():
        return f"{' and '.join(missing)} not installed: {INSTALL} to use {gpus[0].name}"
    if gpus[0].vram is None and settings.vram is None:
        return "the memory of the card is not told (nvidia-smi is missing): name it with --vram"
    return ""


def _assumed(settings: EngineSettings) -> Gpu:
    """A card of which only what may be used of its memory is known."""
    if settings.vram is None:
        hint = "Name the memory of the card to plan for, as --vram 24G"
        raise UsageError("no card is here", where="--device cuda", hint=hint)
    return Gpu(ASSUMED_CARD, None, "none")


def _vram(settings: EngineSettings, whole: int) -> int:
    given = settings.vram
    assert given is not None
    return given if isinstance(given, int) else parse_size(given, option="--vram", whole=whole)


def card_limit(card: Gpu, settings: EngineSettings) -> Limit:
    """The tighter of --vram and what is free on the card. Raises UsageError if neither is known."""
    free = card.free if card.free is not None else card.vram
    if settings.vram is not None:
        named = Limit(_vram(settings, card.vram or 0), "--vram")
        there = named if free is None else Limit(free, "free on the card")
        return min(there, named, key=lambda limit: limit.nbytes)
    if free is None:
        raise UsageError("the memory of the card is not known", where="--vram", expected="a size")
    return Limit(int(_FREE_SHARE * free), f"{_FREE_SHARE:.0%} of what is free on the card")


def place(pack: PackedModel, settings: EngineSettings, limit: Limit) -> Tiers:
    """Where the experts would be. Raises MemoryBudgetError, PackError, UsageError."""
    facts = read_facts(pack, load_family(pack.manifest.family), settings)
    _, budget = card_budget(pack, facts, limit)
    everything = len(pack.manifest.layers) * pack.num_experts
    if budget.slots >= everything:
        return Tiers(everything, 0, everything)
    process = read_system_memory().process + TORCH_BYTES
    return Tiers(budget.slots, pinned_slots(pack, facts, settings, process), everything)
