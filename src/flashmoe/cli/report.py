"""What is said after an answer: summary line, warnings, JSON object. Pure functions of Stats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashmoe.stats import PRESSURE, Stats


@dataclass
class Answer:
    """An answer as far as it came. finish_reason: a Piece's, or "interrupted"."""

    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "interrupted"

    @property
    def text(self) -> str:
        return "".join(self.parts)


def summary_line(answer: Answer, stats: Stats) -> str:
    """Tokens, speed, hit rate, disk and memory in one line."""
    figures = [
        f"{len(answer.token_ids)} tokens ({answer.finish_reason})",
        f"decode {stats.decode_tokens_per_second:.1f} tok/s",
        f"prefill {stats.prompt_tokens} at {stats.prefill_tokens_per_second:.1f} tok/s",
        f"first token {stats.time_to_first_token:.2f} s",
        f"hit rate {stats.hit_rate:.1%}",
        f"{stats.bytes_read / 1e9:.3f} GB read",
        f"peak RSS {stats.peak_rss / 1e9:.3f} GB",
    ]
    if stats.lossy:
        figures.append(f"lossy: {stats.lossy}")
    return " | ".join(figures)


def warnings(stats: Stats) -> list[str]:
    """What the reader of the answer must know about how it came about."""
    found = []
    k, native = stats.experts_per_token, stats.native_experts_per_token
    if k < native:
        found.append(
            f"experts per token lowered from {native} to {k}: this is not the model's own answer"
        )
    if stats.routing:
        found.append(f"routing {stats.routing}: this is not the model's own answer")
    if not stats.direct_io:
        found.append(
            "the file system refuses O_DIRECT: experts are read through the page cache, "
            "which takes memory beyond --ram"
        )
    if pressure := stats.cache_resizes.get(PRESSURE):
        found.append(
            f"memory ran short {pressure} times: the expert cache has {stats.cache_slots} of "
            f"{stats.cache_budget_slots} slots now; a smaller --ram leaves others more"
        )
    return found


def json_report(answer: Answer, stats: Stats, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about one run. Times in seconds, sizes in bytes."""
    return {
        "text": answer.text,
        "tokens": len(answer.token_ids),
        "token_ids": answer.token_ids,
        "prompt_tokens": stats.prompt_tokens,
        "finish_reason": answer.finish_reason,
        "timings": _timings(stats),
        "cache": _fields(stats, _CACHE) | {"hit_rate": stats.hit_rate},
        "memory": _fields(stats, _MEMORY),
        "engine": _fields(stats, _ENGINE),
        "options": dict(options),
        "warnings": warnings(stats),
    }


_CACHE = (
    "cache_hits",
    "cache_misses",
    "cache_slots",
    "cache_budget_slots",
    "cache_resizes",
    "cache_bytes",
    "bytes_read",
    "prefetched",
    "prefetch_wasted",
    "direct_io",
)
_MEMORY = ("peak_rss", "resident_bytes", "embedding_on_disk", "kv_bytes", "cache_bytes")
_ENGINE = ("num_layers", "experts_per_token", "native_experts_per_token", "lossy", "isa", "threads")


def _timings(stats: Stats) -> dict[str, Any]:
    return {
        "time_to_first_token": stats.time_to_first_token,
        "prefill_seconds": stats.prefill_seconds,
        "prefill_tokens_per_second": stats.prefill_tokens_per_second,
        "decode_seconds": stats.decode_seconds,
        "decode_tokens": stats.decode_tokens,
        "decode_tokens_per_second": stats.decode_tokens_per_second,
        "phase_seconds": dict(stats.phase_seconds),
        "prefill_phase_seconds": dict(stats.prefill_phase_seconds),
    }


def _fields(stats: Stats, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(stats, name) for name in names}
