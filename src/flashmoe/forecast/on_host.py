"""How a model would run on the CPU: packed, and in place where it is a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from flashmoe.errors import MemoryBudgetError
from flashmoe.forecast.figures import (
    DECODE,
    FIRST_TOKEN,
    PROMPT_TOKENS,
    Comparison,
    Figure,
    Speed,
    best_win,
)
from flashmoe.forecast.hits import Hits, even_hit_rate
from flashmoe.forecast.model import Rates, Sizes, first_token_seconds, tokens_per_second
from flashmoe.forecast.rates import MachineRates
from flashmoe.forecast.sizes import sizes_of
from flashmoe.models.registry import load_family
from flashmoe.planning import make_plan
from flashmoe.settings import EngineSettings
from flashmoe.store.gain import gain
from flashmoe.store.inplace import InPlaceModel

GOOD_DISK: Final = 7e9


def host_speed(sizes: Sizes, machine: MachineRates, hits: Hits, slots: int) -> Speed:
    """slots: experts that the cache holds."""
    share, rates = slots / sizes.experts, machine.rates
    first = first_token_seconds(sizes, rates, PROMPT_TOKENS, share)
    expected = tokens_per_second(sizes, rates, hits.rate(share))
    even = tokens_per_second(sizes, rates, even_hit_rate(share))
    figures = (
        Figure("expert cache", slots * sizes.record, "bytes", "estimated"),
        Figure("hit rate", hits.rate(share), "share", hits.origin, hits.note),
        Figure("disk", rates.disk, "bytes/s", machine.disk.origin, machine.disk.note),
        Figure("memory", rates.memory, "bytes/s", machine.memory.origin, machine.memory.note),
        Figure(DECODE, expected, "tok/s", "estimated"),
        Figure("decode, even routing", even, "tok/s", "estimated"),
        Figure(FIRST_TOKEN, first, "s", "estimated"),
    )
    return Speed(figures, expected, biggest_win(sizes, rates, slots, hits.rate))


def biggest_win(sizes: Sizes, rates: Rates, slots: int, hits: Callable[[float], float]) -> str:
    """Which of more memory, a faster disk and faster memory helps most, and by how much."""
    share = slots / sizes.experts
    now = tokens_per_second(sizes, rates, hits(share))
    twice = min(1.0, 2 * share)
    more = (min(2 * slots, sizes.experts) - slots) * sizes.record / 1e9
    faster = replace(rates, disk=max(rates.disk, GOOD_DISK))
    wider = replace(rates, memory=2 * rates.memory)
    choices = {
        f"{more:.0f} GB more memory for experts": tokens_per_second(sizes, rates, hits(twice)),
        "a disk of 7 GB/s": tokens_per_second(sizes, faster, hits(share)),
        "memory of twice the speed": tokens_per_second(sizes, wider, hits(share)),
    }
    return best_win(now, choices)


def in_place_speed(
    model: InPlaceModel, settings: EngineSettings, rates: Rates, hits: Hits, packed: float
) -> Comparison:
    """Beside a pack of `packed` tokens per second. Raises as planning.read_facts."""
    family = load_family(model.manifest.family)
    try:
        slots = make_plan(model, family, settings).budget.slots
    except MemoryBudgetError as error:
        return Comparison(obstacle=f"memory: {error.expected}, needs {error.got}")
    found = gain(next(iter(model.landings.values())))
    config: Any = family.read_config(model.config)
    turning = found.landing_ms / 1e3
    sizes = replace(sizes_of(model.manifest, config, 0), read=found.read_bytes, turning=turning)
    speed = tokens_per_second(sizes, rates, hits.rate(slots / sizes.experts))
    return Comparison(
        tokens_per_second=speed,
        speedup=packed / speed,
        expert_bytes=found.record_bytes,
        read_bytes=found.read_bytes,
        reads=found.reads,
        turning_ms=found.landing_ms,
    )
