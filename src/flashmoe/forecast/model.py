"""Expected speed from sizes and rates. Pure; the formulas are explained in docs/plan.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EFFICIENCY: Final = 0.85
"""Share of the bound that decode reaches: 0.83 to 0.93 in bench/results/decode.jsonl."""
HIT_EXPONENT: Final = 3.1
"""h(f) = 1 - (1 - f)^3.1: hit rates of an LRU cache on published routing traces, within 0.06."""
FLOPS_PER_CORE: Final = 80e9
"""Of a prompt's matrix products with AVX-512: from bench/results/prefill.jsonl."""


@dataclass(frozen=True)
class Sizes:
    """Of a model, in bytes. dense: what each token touches of the resident weights."""

    layers: int
    num_experts: int
    experts_per_token: int
    record: int
    dense: int
    active_parameters: int

    @property
    def experts(self) -> int:
        """Experts of all layers."""
        return self.layers * self.num_experts

    @property
    def per_token(self) -> int:
        """Bytes of the experts that a token uses."""
        return self.layers * self.experts_per_token * self.record


@dataclass(frozen=True)
class Rates:
    """Bytes per second of disk and memory; cores that compute."""

    disk: float
    memory: float
    cores: int


def hit_rate(share: float) -> float:
    """Of a cache that holds this share of all experts, with routing as skewed as in real texts."""
    return 1 - float((1 - min(share, 1.0)) ** HIT_EXPONENT)


def tokens_per_second(sizes: Sizes, rates: Rates, hits: float) -> float:
    """Decode: reads overlap with computing, so the slower of the two counts."""
    reading = (1 - hits) * sizes.per_token / rates.disk
    computing = (sizes.dense + sizes.per_token) / rates.memory
    return EFFICIENCY / max(reading, computing)


def first_token_seconds(sizes: Sizes, rates: Rates, tokens: int, share: float) -> float:
    """A prompt in one pass: each expert that any token wants is read once, but what is cached."""
    touched = 1 - (1 - sizes.experts_per_token / sizes.num_experts) ** tokens
    reading = max(0.0, touched - share) * sizes.experts * sizes.record / rates.disk
    computing = 2 * sizes.active_parameters * tokens / (FLOPS_PER_CORE * rates.cores)
    return max(reading, computing)
