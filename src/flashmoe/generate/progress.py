"""How far a prompt has come, as text for people."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

# Seconds between two texts: layers of a small model pass faster than anyone reads.
_INTERVAL = 0.1


class PromptMeter:
    """Tokens done, speed and time left, of one prompt; `show` gets a text now and then."""

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float] = monotonic) -> None:
        self._show, self._clock = show, clock
        self._start = self._shown = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        """As on_progress of flashmoe.Model.generate: tokens done, tokens of the prompt."""
        now = self._clock()
        if done == 0:
            self._start, self._shown = now, float("-inf")
        if now - self._shown < _INTERVAL and done < total:
            return
        self._shown = now
        self._show(_text(done, total, now - self._start))


def _text(done: int, total: int, seconds: float) -> str:
    text = f"{done} of {total} tokens"
    if not done or seconds <= 0:
        return text
    rate = done / seconds
    return f"{text}, {rate:.1f} tok/s, {_duration((total - done) / rate)} left"


def _duration(seconds: float) -> str:
    """Up to two minutes as 95 s, beyond as 3:05 min."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60}:{whole % 60:02d} min"
