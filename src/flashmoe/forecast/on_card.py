"""How a model would run on a card: tiers, rates, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flashmoe.experts.memory import Limit
from flashmoe.forecast import recorded
from flashmoe.forecast.card import (
    CardRates,
    Tiers,
    assumed_rates,
    card_first_token_seconds,
    card_tokens_per_second,
)
from flashmoe.forecast.figures import (
    DECODE,
    FIRST_TOKEN,
    PROMPT_TOKENS,
    Figure,
    Origin,
    Speed,
    best_win,
)
from flashmoe.forecast.hits import Hits
from flashmoe.forecast.model import Sizes
from flashmoe.forecast.rates import Known

_GOOD_DISK: Final = 7e9


@dataclass(frozen=True)
class KnownCard:
    """Rates of a card and where they are from."""

    rates: CardRates
    origin: Origin
    note: str


def known_card(name: str, source: str) -> KnownCard:
    """Recorded rates of a card of this name (source: "auto"), else assumed ones."""
    rows = recorded.recorded_rows(recorded.record_folders(Path.cwd())) if source == "auto" else []
    found = recorded.card_rates(rows, name)
    if found is None:
        rates, note = assumed_rates(name)
        return KnownCard(rates, "assumed", note)
    rates, day = found
    return KnownCard(rates, "recorded", f"{day} on such a card")


def card_speed(
    sizes: Sizes, tiers: Tiers, card: KnownCard, disk: Known, hits: Hits, limit: Limit
) -> Speed:
    """limit: memory on the card that may be used."""
    rates = card.rates
    speed = card_tokens_per_second(sizes, rates, disk.value, tiers, hits.rate)
    first = card_first_token_seconds(sizes, rates, disk.value, tiers, PROMPT_TOKENS)
    figures = [
        Figure("memory on the card", limit.nbytes, "bytes", "limit", limit.origin),
        *_tier_figures(sizes, tiers, hits),
        Figure("card, copy", rates.copy, "bytes/s", card.origin, card.note),
        Figure("RAM to card", rates.bus, "bytes/s", card.origin, card.note),
        Figure("disk", disk.value, "bytes/s", disk.origin, disk.note),
        Figure(DECODE, speed, "tok/s", "estimated"),
        Figure(FIRST_TOKEN, first, "s", "estimated"),
    ]
    return Speed(tuple(figures), speed, _win(sizes, tiers, rates, disk.value, hits))


def _tier_figures(sizes: Sizes, tiers: Tiers, hits: Hits) -> Sequence[Figure]:
    """Bytes of experts by tier (RAM also keeps those of the card), and where a token finds its."""
    on_card = hits.rate(min(1.0, tiers.on_card / tiers.everything))
    kept = hits.rate(tiers.kept)
    left = tiers.everything - round(tiers.kept * tiers.everything)
    return [
        Figure("experts on the card", tiers.on_card * sizes.record, "bytes", "estimated"),
        Figure("experts in RAM", tiers.in_ram * sizes.record, "bytes", "estimated"),
        Figure("experts on disk only", left * sizes.record, "bytes", "estimated"),
        Figure("found on the card", on_card, "share", hits.origin, hits.note),
        Figure("found in RAM", max(0.0, kept - on_card), "share", hits.origin, hits.note),
        Figure("read from disk", 1 - kept, "share", hits.origin, hits.note),
    ]


def _win(sizes: Sizes, tiers: Tiers, rates: CardRates, disk: float, hits: Hits) -> str:
    def speed(disk: float, tiers: Tiers) -> float:
        return card_tokens_per_second(sizes, rates, disk, tiers, hits.rate)

    everything = tiers.everything
    card = replace(tiers, on_card=min(2 * tiers.on_card, everything))
    ram = replace(tiers, in_ram=min(2 * tiers.in_ram, everything))
    added = [(many.on_card - tiers.on_card, many.in_ram - tiers.in_ram) for many in (card, ram)]
    choices = {
        f"{added[0][0] * sizes.record / 1e9:.0f} GB more memory on the card": speed(disk, card),
        f"{added[1][1] * sizes.record / 1e9:.0f} GB more RAM": speed(disk, ram),
        "a disk of 7 GB/s": speed(max(disk, _GOOD_DISK), tiers),
    }
    return best_win(speed(disk, tiers), choices)
