"""Whether reading on a guess pays: found out by trying without it now and then.

Pure: seconds and misses of decode tokens go in, on or off comes out. The rule and what it was
tried on: docs/experiments/prefetch.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Prefetch = Literal["auto", "on", "off"]

WINDOW: Final = 5
"""Tokens in a row, with or without guesses. The first does not count: it finds the guesses, or
their absence, of the window before."""
VOTES: Final = 3
"""A trial is the best of five: each window without guesses is compared with the two around it."""
GAIN: Final = 0.02
"""By how much of a token's time guesses must be better: they also cost processor time."""
CLEAR: Final = 0.10
"""A window without guesses that is worse by so much ends a trial at once: a pair of windows is off
by about 9 % where tokens are off by 15 %, and a verdict that chance made is tried again."""
FEWEST_MISSES: Final = 1.0
"""Per token. With fewer there is nothing to gain, and nothing is tried."""
REST: Final = {True: (128, 2048), False: (96, 1024)}
"""Fewest and most tokens until the next trial, while guesses are on or off; twice as many each time
that the verdict stands. Shorter while off: where experts are missed, on is the likelier truth."""

_MEMORY: Final = 1 / 64
"""Weight of a token in what a miss is thought to cost."""


class PrefetchControl:
    """Decides for the next token. Starts with a trial: guesses stay on only after a measured gain.
    A window goes before it uncounted, while the cache may still be filling."""

    def __init__(self, mode: Prefetch) -> None:
        self._mode = mode
        self._verdict = mode != "off"
        self._doubted = False
        self._rest, self._resting = REST[True][0] // 2, WINDOW
        self._misses_per_token = FEWEST_MISSES
        self._cost = _MissCost()
        self._trial = _Trial()

    @property
    def on(self) -> bool:
        """Whether the next token should be decoded with guesses."""
        if self._mode != "auto":
            return self._mode == "on"
        if self._misses_per_token < FEWEST_MISSES:
            return False
        return self._verdict if self._resting else self._trial.on

    @property
    def on_for_prompt(self) -> bool:
        """Whether a chunk of a prompt should guess: it wants most experts of every layer, so that
        guesses are right whatever decode has found."""
        return self._mode != "off"

    def book(self, seconds: float, misses: int) -> None:
        """A token was decoded in so many seconds and missed so many experts."""
        if self._mode != "auto":
            return
        self._misses_per_token += (misses - self._misses_per_token) / WINDOW
        if self._misses_per_token < FEWEST_MISSES:
            self._trial = _Trial()
            return
        self._cost.book(seconds, misses)
        if self._resting:
            self._resting -= 1
            return
        self._trial.book(seconds, misses, self._cost)
        if self._trial.gain is not None:
            self._decide(self._trial.gain)

    def _decide(self, gain: bool) -> None:
        """A single lost trial turns nothing off: the next one begins at once."""
        self._trial = _Trial()
        if not gain and self._verdict and not self._doubted:
            self._doubted = True
            return
        shortest, longest = REST[gain]
        self._rest = min(2 * self._rest, longest) if gain is self._verdict else shortest
        self._resting, self._verdict, self._doubted = self._rest, gain, False


@dataclass
class _MissCost:
    """A line through (misses, seconds) of the tokens so far, late ones counting more."""

    seconds: float = 0.0
    misses: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0
    tokens: int = 0

    def book(self, seconds: float, misses: int) -> None:
        """Add a token (exponentially weighted means, variance and covariance)."""
        self.tokens += 1
        weight = max(_MEMORY, 1 / self.tokens)
        more, longer = misses - self.misses, seconds - self.seconds
        self.misses += weight * more
        self.seconds += weight * longer
        self.variance = (1 - weight) * (self.variance + weight * more * more)
        self.covariance = (1 - weight) * (self.covariance + weight * more * longer)

    def expected(self, misses: float) -> float:
        """Seconds of a token with so many misses, between "they cost nothing" and "nothing else
        costs": noise cannot make the slope less or more. Positive if any token took time."""
        slope = self.covariance / self.variance if self.variance > 0 else 0.0
        slope = min(max(slope, 0.0), self.seconds / self.misses)
        # A window without any miss must not be expected to take no time.
        return max(self.seconds + slope * (misses - self.misses), 0.1 * self.seconds)


@dataclass
class _Trial:
    """Windows with and without guesses in turn, beginning and ending with.

    gain: the verdict, None while there is none.
    """

    gain: bool | None = None
    _windows: list[tuple[float, float]] = field(default_factory=list)
    _tokens: list[tuple[float, int]] = field(default_factory=list)
    _votes: list[bool] = field(default_factory=list)

    @property
    def on(self) -> bool:
        """Whether the next token is one of a window with guesses."""
        return len(self._windows) % 2 == 0

    def book(self, seconds: float, misses: int, cost: _MissCost) -> None:
        """Add a token; cost: what misses cost, so that tokens of unlike misses compare."""
        self._tokens.append((seconds, misses))
        if len(self._tokens) < WINDOW:
            return
        counted = self._tokens[1:]
        self._windows.append((_mean([s for s, _ in counted]), _mean([m for _, m in counted])))
        self._tokens = []
        if len(self._windows) >= 3 and not self.on:
            self._vote(cost)

    def _vote(self, cost: _MissCost) -> None:
        """What changes evenly with time favours neither side."""
        before, without, after = (s / cost.expected(m) for s, m in self._windows[-3:])
        relative = (before + after) / 2 / without
        self._votes.append(relative < 1 - GAIN)
        if relative < 1 - CLEAR or self._votes.count(True) == VOTES:
            self.gain = True
        elif self._votes.count(False) == VOTES:
            self.gain = False


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values)
