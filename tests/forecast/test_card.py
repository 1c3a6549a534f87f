"""The formulas for three tiers, held to what was recorded of them."""

from __future__ import annotations

from typing import Any

import pytest

from flashmoe.forecast.card import (
    CardRates,
    Tiers,
    assumed_rates,
    card_first_token_seconds,
    card_tokens_per_second,
    host_plans,
    token_seconds,
)
from flashmoe.forecast.hits import even_hit_rate
from flashmoe.forecast.model import Sizes
from tests.forecast.support import recorded, sizes_of_row
from tests.support.tolerances import FORECAST_ERROR

SIZES = Sizes(48, 128, 8, 2_654_208, 710_000_000, 3_041_869_824)
RATES = CardRates(2.12e12, 55e9)
ROWS = recorded("cuda", "2026-11-23T19:5", "2026-11-23T20:01")


@pytest.mark.parametrize("row", ROWS, ids=[row["command"] for row in ROWS])
def test_decode_of_every_recorded_run_is_met(row: dict[str, Any]) -> None:
    figures = row["figures"]
    rates = figures["rates"]
    card = CardRates(rates["copy_bytes_per_s"], rates["host_to_card_bytes_per_s"])
    sizes = sizes_of_row(row, figures["bytes_touched_per_token"])
    tiers = Tiers(figures["device_slots"], figures["ram_slots"], sizes.experts)
    window = figures["decode"][len(figures["decode"]) // 2]
    share = window["share"] or {"card": 1.0, "disk": 0.0}
    copied = window["copied_bytes"] / window["tokens"] / sizes.per_token
    planned = host_plans(sizes, tiers)
    expected = token_seconds(sizes, card, rates["disk_bytes_per_s"], copied, share["disk"], planned)
    assert 1 / expected == pytest.approx(
        figures["decode_tokens_per_second"]["median"], rel=FORECAST_ERROR
    )


@pytest.mark.parametrize("row", ROWS, ids=[row["command"] for row in ROWS])
def test_prefill_of_every_recorded_run_is_met(row: dict[str, Any]) -> None:
    figures = row["figures"]
    rates = figures["rates"]
    card = CardRates(rates["copy_bytes_per_s"], rates["host_to_card_bytes_per_s"])
    sizes = sizes_of_row(row, figures["bytes_touched_per_token"])
    tiers = Tiers(figures["device_slots"], figures["ram_slots"], sizes.experts)
    tokens = row["options"]["prompt"]
    seconds = card_first_token_seconds(sizes, card, rates["disk_bytes_per_s"], tiers, tokens)
    measured = figures["prefill_tokens_per_second"]["median"]
    assert tokens / seconds == pytest.approx(measured, rel=FORECAST_ERROR)


def test_each_tier_is_slower_than_the_one_above() -> None:
    everything = SIZES.experts
    spread = [
        Tiers(everything, 0, everything),
        Tiers(everything // 4, everything, everything),
        Tiers(everything // 4, everything // 2, everything),
        Tiers(everything // 8, everything // 8, everything),
    ]
    speeds = [card_tokens_per_second(SIZES, RATES, 2e9, tiers, even_hit_rate) for tiers in spread]
    assert speeds == sorted(speeds, reverse=True)
    first = [card_first_token_seconds(SIZES, RATES, 2e9, tiers, 512) for tiers in spread]
    assert first == sorted(first)


def test_the_host_plans_where_ram_does_not_hold_everything() -> None:
    everything = SIZES.experts
    assert not host_plans(SIZES, Tiers(everything, 0, everything))
    assert not host_plans(SIZES, Tiers(256, everything, everything))
    assert host_plans(SIZES, Tiers(255, everything, everything))
    assert host_plans(SIZES, Tiers(256, everything - 1, everything))


def test_an_unknown_card_is_a_slow_one() -> None:
    (fast, named), (slow, unnamed) = map(assumed_rates, ("NVIDIA H200 NVL", "Something 1"))
    assert fast.copy == pytest.approx(RATES.copy, rel=0.01)
    assert slow.copy < fast.copy
    assert (named, unnamed) == ("data sheet of H200", "as a slow card")
