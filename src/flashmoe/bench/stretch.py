"""What a stretch of work of an open model took: the difference of its figures before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flashmoe.api import Model


@dataclass
class Stretch:
    """Wall-clock seconds, seconds by phase, counts and bytes of `tokens` tokens.

    prefetched, prefetch_wasted, reading_seconds and processor seconds: as in Stats. phases: as in
    flashmoe.stats.PHASES; "python" is what no other phase accounts for, so that they add up to
    seconds.
    """

    tokens: int
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    prefetched: int = 0
    prefetch_wasted: int = 0
    reading_seconds: float = 0.0
    read_cpu_seconds: float = 0.0
    checksum_cpu_seconds: float = 0.0
    landing_cpu_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def row(self) -> dict[str, Any]:
        """For JSON: rates and shares beside what was counted."""
        wanted, from_disk = self.hits + self.misses, self.bytes_read + self.prefetch_wasted
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "hit_rate": self.hits / wanted if wanted else None,
            "bytes_read": self.bytes_read,
            "bytes_read_per_token": self.bytes_read / self.tokens,
            "disk_bytes_per_s_while_reading": _ratio(from_disk, self.reading_seconds),
            "reading_share": self.reading_seconds / self.seconds,
            "prefetched_share": _ratio(self.prefetched, self.misses),
            "prefetch_wasted_per_token": self.prefetch_wasted / self.tokens,
            "cpu_ms_per_gb": _ratio(1e12 * self.read_cpu_seconds, from_disk),
            "checksum_ms_per_gb": _ratio(1e12 * self.checksum_cpu_seconds, from_disk),
            "landing_ms_per_gb": _ratio(1e12 * self.landing_cpu_seconds, from_disk),
            "disk_wait_share": self.phases.get("disk_wait", 0.0) / self.seconds,
            "python_share": self.phases["python"] / self.seconds,
            "phase_ms_per_token": {
                name: 1e3 * value / self.tokens for name, value in self.phases.items()
            },
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


_COUNTS = (
    "bytes_read",
    "prefetched",
    "prefetch_wasted",
    "reading_seconds",
    "read_cpu_seconds",
    "checksum_cpu_seconds",
    "landing_cpu_seconds",
)


@contextmanager
def stretch(model: Model, tokens: int) -> Iterator[Stretch]:
    """Measure the body, which feeds `tokens` tokens to a session of the model."""
    measured, before = Stretch(tokens), model.stats
    start = perf_counter()
    yield measured
    measured.seconds = perf_counter() - start
    after = model.stats
    measured.hits = after.cache_hits - before.cache_hits
    measured.misses = after.cache_misses - before.cache_misses
    for name in _COUNTS:
        setattr(measured, name, getattr(after, name) - getattr(before, name))
    phases = _difference(after.phase_seconds, before.phase_seconds)
    _add(phases, _difference(after.prefill_phase_seconds, before.prefill_phase_seconds))
    phases["python"] = measured.seconds - sum(phases.values()) + phases.get("python", 0.0)
    measured.phases = phases


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def random_ids(vocab_size: int, count: int, seed: int) -> list[int]:
    """Token ids to feed: any model takes them, and the same seed gives the same."""
    ids: list[int] = np.random.default_rng(seed).integers(0, vocab_size, count).tolist()
    return ids


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def middle(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The median of a figure over rows; None where a row lacks it."""
    values = [row[name] for row in rows]
    return None if None in values else median(values)
