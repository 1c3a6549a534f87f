"""What one generate() call cost: counters, times per phase, memory.

Numbers only; how they are measured is the engine's business, how they are shown the command's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Phases of a decode step in the order in which they are shown.
PHASES = (
    "attention",
    "delta",
    "router",
    "disk_wait",
    "copies",
    "host_experts",
    "experts",
    "shared",
    "card",
    "planning",
    "graph",
    "trace",
    "head",
    "sampling",
    "python",
    "other",
)

# The reason in cache_resizes that a user should hear of.
PRESSURE = "memory is short"


@dataclass(frozen=True)
class Stats:
    """Figures of the latest generate() call. Times in seconds of wall clock, sizes in bytes.

    prompt_tokens: tokens run in prefill. decode_tokens: tokens that decode steps ran; the first
    token of an answer is not among them, it comes out of prefill.
    phase_seconds, prefill_phase_seconds: keys from PHASES; they sum to decode_seconds and
    prefill_seconds.
    cache_hits, cache_misses: routed experts found in memory, or read. bytes_read: from the disk.
    prefetched: misses guessed before their layer asked, read by then or not. prefetch_wasted: bytes
    read for experts that their layer did not want.
    reading_seconds: in which the disk was being read. read_cpu_seconds, checksum_cpu_seconds,
    landing_cpu_seconds: processor time of reading, checking, turning bytes of a checkpoint.
    cache_slots, cache_bytes: now; cache_budget_slots: the most there may be. cache_resizes: how
    often the automatic cache changed its size since the model was opened, by reason.
    embedding_on_disk: rows of the input embedding are read as they are needed.
    direct_io: False when O_DIRECT was refused and reads go through the page cache.
    device: cpu or cuda; device_reason: why that one. device_slots: experts on the card;
    device_bytes: all that was planned there. hybrid: what became of the setting, in words.
    open_seconds: what opening the model took, by part.
    native_experts_per_token: the model's own K; a smaller experts_per_token is lossy.
    routing: the lossy rules that are on (flashmoe.routing), as they are written.
    """

    prompt_tokens: int = 0
    decode_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    time_to_first_token: float = 0.0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    prefill_phase_seconds: Mapping[str, float] = field(default_factory=dict)
    cache_hits: int = 0
    cache_misses: int = 0
    bytes_read: int = 0
    prefetched: int = 0
    prefetch_wasted: int = 0
    reading_seconds: float = 0.0
    read_cpu_seconds: float = 0.0
    checksum_cpu_seconds: float = 0.0
    landing_cpu_seconds: float = 0.0
    peak_rss: int = 0
    cache_slots: int = 0
    cache_bytes: int = 0
    cache_budget_slots: int = 0
    cache_resizes: Mapping[str, int] = field(default_factory=dict)
    embedding_on_disk: bool = False
    resident_bytes: int = 0
    kv_bytes: int = 0
    num_layers: int = 0
    direct_io: bool = True
    experts_per_token: int = 0
    native_experts_per_token: int = 0
    open_seconds: Mapping[str, float] = field(default_factory=dict)
    isa: str = ""
    threads: int = 0
    routing: str = ""
    device: str = "cpu"
    device_reason: str = ""
    device_slots: int = 0
    device_bytes: int = 0
    hybrid: str = ""

    @property
    def hit_rate(self) -> float:
        """Share of the wanted experts that were in memory, 0 to 1; 0 when none was wanted."""
        return _ratio(self.cache_hits, self.cache_hits + self.cache_misses)

    @property
    def lossy(self) -> str:
        """What makes these answers not the model's own; empty: nothing."""
        k, native = self.experts_per_token, self.native_experts_per_token
        fewer = f"{k} of {native} experts per token" if k < native else ""
        return "; ".join(
            part for part in (fewer, self.routing and f"routing {self.routing}") if part
        )

    @property
    def prefetch_share(self) -> float:
        """Share of the misses that were prefetched, 0 to 1; 0 when none was missed."""
        return _ratio(self.prefetched, self.cache_misses)

    @property
    def read_cpu_ms_per_gb(self) -> float:
        """Processor time of reading, checksums not counted, per 10^9 bytes."""
        return _ratio(1e12 * self.read_cpu_seconds, self.bytes_read + self.prefetch_wasted)

    @property
    def decode_tokens_per_second(self) -> float:
        return _ratio(self.decode_tokens, self.decode_seconds)

    @property
    def prefill_tokens_per_second(self) -> float:
        return _ratio(self.prompt_tokens, self.prefill_seconds)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
