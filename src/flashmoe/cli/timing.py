"""Where the time went: a table per phase, and what bounds the speed. Pure functions of Stats."""

from __future__ import annotations

from collections.abc import Mapping

from flashmoe.stats import PHASES, Stats

_OUTSIDE_LAYERS = ("head", "sampling")

# What the user experiences, the phases that make it up, and what would help.
_BOUNDS = (
    ("waiting for the disk", ("disk_wait",), "a larger --cache or --ram, or a faster disk"),
    ("copies to the card", ("copies",), "a larger --vram or a faster bus"),
    (
        "computing experts",
        ("experts", "shared", "host_experts"),
        "more --threads or a faster processor",
    ),
    ("the card's kernels and their launches", ("card",), "a faster card"),
    ("attention", ("attention", "delta"), "more --threads or a shorter context"),
    ("router and output head", ("router", "head"), "more --threads or a faster processor"),
    ("Python and sampling", ("python", "sampling", "planning", "other"), "a faster single core"),
)


def timing_report(stats: Stats) -> str:
    """Tables for prefill and decode, what reads cost, then one sentence; several lines."""
    prefill = _table(
        "prefill",
        stats.prompt_tokens,
        stats.num_layers,
        stats.prefill_seconds,
        stats.prefill_phase_seconds,
    )
    decode = _table(
        "decode", stats.decode_tokens, stats.num_layers, stats.decode_seconds, stats.phase_seconds
    )
    shares = [*_cache_line(stats), *_reads(stats), python_share(stats), bound(stats)]
    return "\n".join([*prefill, *decode, *shares])


def _reads(stats: Stats) -> list[str]:
    """What reading cost and what reading ahead brought; nothing where nothing was read."""
    if not stats.bytes_read:
        return []
    return [
        f"reads: {stats.read_cpu_ms_per_gb:.0f} ms of processor time per GB;"
        f" {stats.prefetch_share:.0%} of the misses guessed,"
        f" {stats.prefetch_wasted / 1e9:.3f} GB read in vain"
    ]


def python_share(stats: Stats) -> str:
    """One sentence: the share of decode in which neither kernels nor the disk nor sampling ran."""
    total = sum(stats.phase_seconds.values())
    share = stats.phase_seconds.get("python", 0.0) / total if total > 0 else 0.0
    return f"Python's own share of a decode step: {share:.1%}."


def bound(stats: Stats) -> str:
    """One sentence: what takes the largest share of decode, and what would help."""
    total = sum(stats.phase_seconds.values())
    if stats.decode_tokens == 0 or total <= 0:
        return "Nothing was decoded after the first token: no bound to name."
    shares = [
        (sum(stats.phase_seconds.get(phase, 0.0) for phase in phases) / total, name, help)
        for name, phases, help in _BOUNDS
    ]
    share, name, help = max(shares)
    return f"Decode speed is bound by {name} ({share:.0%} of the time); {help} would help."


def _cache_line(stats: Stats) -> list[str]:
    """What became of the cache, if its size changed."""
    if not stats.cache_resizes:
        return []
    reasons = ", ".join(f"{count} x {why}" for why, count in stats.cache_resizes.items())
    return [
        f"expert cache: {stats.cache_slots} of {stats.cache_budget_slots} slots now; "
        f"changes: {reasons}"
    ]


def _table(
    title: str, tokens: int, layers: int, seconds: float, phases: Mapping[str, float]
) -> list[str]:
    lines = [f"{title + f' ({tokens} tokens)':<24}{'ms/token':>10}{'ms/layer':>10}{'%':>8}"]
    for phase in _ordered(phases):
        per_layer = 0 if phase in _OUTSIDE_LAYERS else layers
        lines.append(_row(phase, phases[phase], tokens, per_layer, seconds))
    return [*lines, _row("total", seconds, tokens, layers, seconds)]


def _ordered(phases: Mapping[str, float]) -> list[str]:
    """Known phases first, in their order; then those that only the engine knows."""
    return [p for p in PHASES if p in phases] + sorted(phases.keys() - set(PHASES))


def _row(phase: str, seconds: float, tokens: int, layers: int, total: float) -> str:
    per_token = 1000 * seconds / max(tokens, 1)
    per_layer = f"{per_token / layers:.3f}" if layers else "-"
    share = 100 * seconds / total if total > 0 else 0.0
    return f"  {phase:<22}{per_token:>10.3f}{per_layer:>10}{share:>8.1f}"
