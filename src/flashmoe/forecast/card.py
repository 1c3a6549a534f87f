"""Expected speed on a card with experts in three tiers. Pure; docs/plan.md explains the formulas.

The constants are fits of the rows in bench/results/cuda.jsonl, one card;
tests/forecast/test_card.py holds the formulas to those rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flashmoe.forecast.model import Sizes, touched_share
from flashmoe.ops.card_sizes import floor_device_slots

LAYER_SECONDS: Final = 26e-6
"""Launches and latency of a layer, whatever it reads."""
HOST_LAYER_SECONDS: Final = 0.3e-3
"""The host's part of a layer where it has to plan, because RAM does not hold every expert."""
PREFILL_EFFICIENCY: Final = 0.85
FLOPS_PER_COPY_BYTE: Final = 87.0
"""Of a prompt's matrix products, per byte per second of the card's copy rate."""
# Copy rate, one way, over the data sheet's bandwidth: as measured on the H200 (4.8 TB/s).
_COPY_SHARE: Final = 0.44

# Of a card's name, the first that is part of it: bandwidth of its memory by data sheet, and what a
# bus of that generation brings with pinned memory, in GB/s.
ASSUMED: Final = (
    ("H200", 4800, 50),
    ("H100", 3350, 50),
    ("A100", 1555, 25),
    ("L40S", 864, 25),
    ("L4", 300, 25),
    ("T4", 320, 12),
    ("A6000", 768, 25),
    ("RTX 5090", 1792, 50),
    ("RTX 5080", 960, 50),
    ("RTX 5070", 672, 50),
    ("RTX 4090", 1008, 25),
    ("RTX 4080", 717, 25),
    ("RTX 4070", 504, 25),
    ("RTX 4060", 272, 12),
    ("RTX 3090", 936, 25),
    ("RTX 3080", 760, 25),
    ("RTX 3070", 448, 25),
    ("RTX 3060", 360, 25),
    ("", 300, 12),
)


@dataclass(frozen=True)
class CardRates:
    """Bytes per second. copy: within the card, one way; bus: from pinned RAM to the card."""

    copy: float
    bus: float


@dataclass(frozen=True)
class Tiers:
    """Where experts are. on_card, in_ram: slots; RAM keeps copies of what the card holds too.

    everything: experts of all layers.
    """

    on_card: int
    in_ram: int
    everything: int

    @property
    def kept(self) -> float:
        """Share of the experts that need no read from the disk."""
        return min(1.0, max(self.on_card, self.in_ram) / self.everything)


def assumed_rates(name: str) -> tuple[CardRates, str]:
    """Of a card that nobody measured here, by its name, and what they are taken from."""
    part, memory, bus = next(row for row in ASSUMED if row[0] in name)
    note = f"data sheet of {part}" if part else "as a slow card"
    return CardRates(_COPY_SHARE * memory * 1e9, bus * 1e9), note


def host_plans(sizes: Sizes, tiers: Tiers) -> bool:
    """Whether the host has to plan every layer: not all experts are on the card, nor in RAM."""
    if tiers.on_card >= tiers.everything:
        return False
    least = floor_device_slots(sizes.num_experts, sizes.experts_per_token)
    return tiers.in_ram < tiers.everything or tiers.on_card < least


def token_seconds(
    sizes: Sizes, rates: CardRates, disk: float, copied: float, read: float, planned: bool
) -> float:
    """Decode: the card's work, the bus, the disk and the host's planning, one after the other.

    copied, read: shares of a token's experts that cross the bus, and that come from the disk. They
    overlap in part; the sum is nearer to what was measured than the largest of them.
    """
    computing = (sizes.dense + sizes.per_token) / rates.copy + sizes.layers * LAYER_SECONDS
    moving = copied * sizes.per_token / rates.bus + read * sizes.per_token / disk
    return computing + moving + planned * sizes.layers * HOST_LAYER_SECONDS


def card_tokens_per_second(
    sizes: Sizes, rates: CardRates, disk: float, tiers: Tiers, hits: Callable[[float], float]
) -> float:
    """hits: the hit rate of a cache of a share of all experts."""
    copied = 1 - hits(min(1.0, tiers.on_card / tiers.everything))
    planned = host_plans(sizes, tiers)
    return 1 / token_seconds(sizes, rates, disk, copied, 1 - hits(tiers.kept), planned)


def card_first_token_seconds(
    sizes: Sizes, rates: CardRates, disk: float, tiers: Tiers, tokens: int
) -> float:
    """A prompt in one pass: whole layers sweep over the bus unless all experts are on the card.

    RAM that does not hold all of them helps no sweep: what it keeps is gone when its turn comes.
    """
    touched = touched_share(sizes, tokens)
    everything = sizes.experts * sizes.record
    computing = 2 * sizes.active_parameters * tokens / (FLOPS_PER_COPY_BYTE * rates.copy)
    if tiers.on_card >= tiers.everything:
        return computing
    reading = 0.0 if tiers.in_ram >= tiers.everything else touched * everything / disk
    return max(computing, touched * everything / rates.bus, reading) / PREFILL_EFFICIENCY
