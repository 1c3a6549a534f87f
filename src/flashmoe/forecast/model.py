"""Expected speed from sizes and rates. Pure; the formulas are explained in docs/plan.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READ_EFFICIENCY: Final = 0.87
"""Share of the disk's rate that decode reaches: fitted to bench/results/decode.jsonl, as are
the next two."""
LAYER_SECONDS: Final = 0.17e-3
"""What a layer of a token takes whatever its size: Python, threads that start and wait."""
READ_SECONDS: Final = 0.3e-3
"""The least that a layer waits if any of its experts has to be read, however small."""
FLOPS_PER_CORE: Final = 80e9
"""Of a prompt's matrix products with AVX-512: from bench/results/prefill.jsonl."""


@dataclass(frozen=True)
class Sizes:
    """Of a model, in bytes. dense: what each token touches of the resident weights.

    read: what a miss reads, more than `record` where a checkpoint runs in place; 0: the record.
    turning: seconds of processor time to make a record of it.
    """

    layers: int
    num_experts: int
    experts_per_token: int
    record: int
    dense: int
    active_parameters: int
    read: float = 0.0
    turning: float = 0.0

    @property
    def experts(self) -> int:
        """Experts of all layers."""
        return self.layers * self.num_experts

    @property
    def chosen(self) -> int:
        """Experts that a token uses, of all layers."""
        return self.layers * self.experts_per_token

    @property
    def per_token(self) -> int:
        """Bytes of the experts that a token uses."""
        return self.chosen * self.record

    @property
    def miss_bytes(self) -> float:
        """Bytes that a miss reads."""
        return self.read or self.record


@dataclass(frozen=True)
class Rates:
    """Bytes per second of disk and memory; cores that compute."""

    disk: float
    memory: float
    cores: int


def tokens_per_second(sizes: Sizes, rates: Rates, hits: float) -> float:
    """Decode: reads overlap with computing, so the slower of the two counts."""
    misses = (1 - hits) * sizes.chosen
    waiting = sizes.layers * (1 - hits**sizes.experts_per_token) * READ_SECONDS
    reading = max(misses * sizes.miss_bytes / rates.disk / READ_EFFICIENCY, waiting)
    computing = (sizes.dense + sizes.per_token) / rates.memory
    turning = misses * sizes.turning / rates.cores
    return 1 / (max(reading, computing + turning) + sizes.layers * LAYER_SECONDS)


def first_token_seconds(sizes: Sizes, rates: Rates, tokens: int, share: float) -> float:
    """A prompt in one pass: each expert that any token wants is read once, but what is cached."""
    misses = max(0.0, touched_share(sizes, tokens) - share) * sizes.experts
    reading = misses * sizes.miss_bytes / rates.disk
    computing = 2 * sizes.active_parameters * tokens / (FLOPS_PER_CORE * rates.cores)
    return max(reading, computing + misses * sizes.turning / rates.cores)


def touched_share(sizes: Sizes, tokens: int) -> float:
    """Share of the experts that at least one of so many tokens wants, if routing is even."""
    return 1 - float((1 - sizes.experts_per_token / sizes.num_experts) ** tokens)
