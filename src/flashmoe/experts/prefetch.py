"""Whether reading on a guess pays: found out by trying it, with and without in turn.

Pure: seconds and misses of decode tokens go in, on or off comes out.
"""

from __future__ import annotations

from statistics import mean, median
from typing import Final, Literal

Prefetch = Literal["auto", "on", "off"]

WINDOW: Final = 5
"""Tokens that are measured in a row. The first of a window does not count: it finds the guesses,
or their absence, of the one before."""
TRIAL: Final = (True, False, True)
"""Windows with and without: what changes evenly with time favours neither, and where guesses pay,
as they usually do, little is lost by trying without."""
GAIN: Final = 0.02
"""By how much of a token's time guesses must be better: they also cost processor time."""
SHORTEST_REST: Final = 128
LONGEST_REST: Final = 2048
"""Tokens until the next trial; twice as many each time that the verdict stands."""
FEWEST_MISSES: Final = 1.0
"""Per token. With fewer there is nothing to gain, and nothing is tried."""


class PrefetchControl:
    """Decides for the next token. `on` is what decode should do now."""

    def __init__(self, mode: Prefetch) -> None:
        self._mode = mode
        self._verdict = mode != "off"
        self._rest = SHORTEST_REST
        self._misses_per_token = FEWEST_MISSES
        self._begin_trial()

    @property
    def on(self) -> bool:
        """Whether the next token should be decoded with guesses."""
        if self._mode != "auto":
            return self._mode == "on"
        if self._misses_per_token < FEWEST_MISSES:
            return False
        return TRIAL[len(self._windows)] if self._resting == 0 else self._verdict

    @property
    def on_for_prompt(self) -> bool:
        """Whether a chunk of a prompt should guess: it wants most experts of every layer, so that
        guesses are right whatever decode has found."""
        return self._mode != "off"

    def book(self, seconds: float, misses: int) -> None:
        """A token was decoded in so many seconds and missed so many experts."""
        if self._mode != "auto":
            return
        had_misses = self._misses_per_token >= FEWEST_MISSES
        self._misses_per_token += (misses - self._misses_per_token) / WINDOW
        if self._misses_per_token < FEWEST_MISSES or not had_misses:
            self._begin_trial()
        elif self._resting:
            self._resting -= 1
        else:
            self._measure(seconds)

    def _begin_trial(self) -> None:
        self._resting = 0
        self._windows: list[float] = []
        self._seconds: list[float] = []

    def _measure(self, seconds: float) -> None:
        self._seconds.append(seconds)
        if len(self._seconds) == WINDOW:
            self._windows.append(median(self._seconds[1:]))
            self._seconds = []
        if len(self._windows) == len(TRIAL):
            self._decide()

    def _decide(self) -> None:
        spent: dict[bool, list[float]] = {True: [], False: []}
        for on, seconds in zip(TRIAL, self._windows, strict=True):
            spent[on].append(seconds)
        verdict = mean(spent[True]) < mean(spent[False]) * (1 - GAIN)
        stands = verdict is self._verdict
        self._rest = min(2 * self._rest, LONGEST_REST) if stands else SHORTEST_REST
        self._verdict = verdict
        self._begin_trial()
        self._resting = self._rest
