"""What the next pass over several sequences holds: pure arithmetic on tokens and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from flashmoe.ops.parts import CHUNK_STEP

GAP_SECONDS: Final = 1.0
"""Between two tokens of an answer, beside a prompt that is being run."""
FIRST_CHUNK: Final = 256
"""Tokens of a prompt beside running answers, before any pass was timed."""


def share_rows(prompts: Sequence[tuple[int, int]], rows: int) -> list[int]:
    """Tokens of each prompt for the next pass, `rows` together.

    prompts: position and tokens left of each, of equals the one to be served first in front. They
    get equal shares, and what the short ones leave goes to the longer. A prompt that is not
    finished is cut at a multiple of 64, so that its result does not depend on the cut; where the
    shares are too small for that, the shortest gets all.
    """
    given = [0] * len(prompts)
    left = rows
    order = sorted(range(len(prompts)), key=lambda i: prompts[i][1])
    for served, index in enumerate(order):
        share = left // (len(order) - served)
        given[index] = _cut(*prompts[index], share) or _cut(*prompts[index], left)
        left -= given[index]
    for index, (position, tokens) in enumerate(prompts):
        given[index] += _cut(position + given[index], tokens - given[index], left)
        left = rows - sum(given)
    return given


def _cut(position: int, tokens: int, rows: int) -> int:
    """As many of the tokens at `position` as fit into `rows` and end well."""
    if tokens <= rows:
        return tokens
    return max(0, (position + rows) // CHUNK_STEP * CHUNK_STEP - position)


class PassTimes:
    """How long passes of so many tokens take, from those that were timed.

    A pass of more tokens takes longer, but not more than in proportion: it reads each expert once.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, tuple[float, float]] = {}  # by magnitude: tokens, seconds

    def book(self, tokens: int, seconds: float) -> None:
        """A pass took so long; the latest counts half."""
        key = tokens.bit_length()
        before = self._seconds.get(key, (tokens, seconds))
        self._seconds[key] = (before[0] + tokens) / 2, (before[1] + seconds) / 2

    def estimate(self, tokens: int) -> float:
        """Seconds that a pass of so many tokens is unlikely to exceed; inf if none was timed."""
        return min((s * max(1.0, tokens / n) for n, s in self._seconds.values()), default=inf)

    def longest(self, tokens: int, seconds: float) -> int:
        """The longest chunk, a multiple of 64 up to `tokens`, that should not take longer."""
        if not self._seconds:
            return min(tokens, FIRST_CHUNK)
        chunks = range(tokens, CHUNK_STEP, -CHUNK_STEP)
        return next((n for n in chunks if self.estimate(n) <= seconds), CHUNK_STEP)
