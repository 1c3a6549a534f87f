"""When a comparison will end. Pure: seconds go in, minutes come out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# Seconds of a pair on 2 cores at 24 layers of the 30B shape, and of a trial of the peer: only
# their proportions matter once something was measured.
_TYPICAL: Final = {
    "decode_ram": 60.0,
    "prefill_ram": 90.0,
    "decode_25": 170.0,
    "decode_50": 120.0,
    "prefill_25": 150.0,
    "decode": 15.0,
    "prefill": 30.0,
}


class Forecast:
    """What is left to do: names of rows, one per pair, and kinds of trials."""

    def __init__(self, jobs: Iterable[str]) -> None:
        self._left = list(jobs)
        self._spent: dict[str, list[float]] = {}

    def skip(self, job: str) -> None:
        """A job that was left need not be done."""
        self._left.remove(job)

    def done(self, job: str, seconds: float) -> None:
        """A job that was left took so long."""
        self._left.remove(job)
        self._spent.setdefault(job, []).append(seconds)

    @property
    def minutes(self) -> float:
        """Until the end: jobs take as long as those of their name, or else as is typical, times
        what this machine needed of the typical so far."""
        return sum(self._seconds(job) for job in self._left) / 60

    def _seconds(self, job: str) -> float:
        spent = self._spent.get(job)
        if spent:
            return sum(spent) / len(spent)
        return _TYPICAL[job] * self._pace()

    def _pace(self) -> float:
        typical = sum(_TYPICAL[job] * len(spent) for job, spent in self._spent.items())
        return sum(map(sum, self._spent.values())) / typical if typical else 1.0
