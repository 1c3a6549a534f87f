"""What a forecast consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from flashmoe.forecast.source import Kind

Origin = Literal["header", "measured", "recorded", "assumed", "limit", "estimated", "replayed"]
Unit = Literal["bytes", "bytes/s", "tok/s", "s", "share"]
Verdict = Literal["good", "slow", "impossible"]

PROMPT_TOKENS: Final = 512
FIRST_TOKEN: Final = f"first token of {PROMPT_TOKENS}"
DECODE: Final = "decode"
SLOW: Final = 3.0
"""Tokens per second under which a model is called slow: about 130 words a minute."""


@dataclass(frozen=True)
class Figure:
    """A value in bytes, tokens per second or seconds, and where it comes from.

    note: more of that for people, as the day of a measurement; "" for none.
    """

    name: str
    value: float
    unit: Unit
    origin: Origin
    note: str = ""


@dataclass(frozen=True)
class Speed:
    """A device's figures, the one that decides among them, and the change that helps most."""

    figures: tuple[Figure, ...]
    tokens_per_second: float
    win: str


@dataclass(frozen=True)
class Comparison:
    """Running a checkpoint in place, on the CPU, beside packing it.

    tokens_per_second: in place; 0 where it cannot, then `obstacle` says why. speedup: of the pack.
    expert_bytes: a record in memory; read_bytes, reads: what a miss asks of the disk, on average;
    turning_ms: processor time to make a record of it.
    """

    tokens_per_second: float = 0.0
    speedup: float = 0.0
    expert_bytes: int = 0
    read_bytes: float = 0.0
    reads: float = 0.0
    turning_ms: float = 0.0
    obstacle: str = ""


@dataclass(frozen=True)
class Outlook:
    """verdict and why; win: the change that helps most; device: cpu or cuda, and why that one.

    in_place: None of what is packed already, and where the model runs on a card.
    """

    kind: Kind
    family: str
    device: str
    device_reason: str
    figures: tuple[Figure, ...]
    verdict: Verdict
    reason: str
    win: str
    in_place: Comparison | None = None


def best_win(now: float, choices: dict[str, float]) -> str:
    """The choice, by its tokens per second, that is most above `now`; nothing under 5 %."""
    name, then = max(choices.items(), key=lambda choice: choice[1])
    return f"{name}: {then / now:.1f}x" if then > 1.05 * now else "nothing simple helps much"
