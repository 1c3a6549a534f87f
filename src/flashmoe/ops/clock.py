"""Where the time of a step goes: seconds per named phase, kept by whoever does the work."""

from __future__ import annotations


class PhaseClock:
    """Adds up seconds under the phase that is current. Layers name the phase, kernels report time.

    What nobody reports (Python, array bookkeeping) is the difference to the wall time of the step.
    """

    def __init__(self) -> None:
        self.phase = "other"
        self.seconds: dict[str, float] = {}

    def add(self, seconds: float, phase: str | None = None) -> None:
        """Book seconds under `phase` (default: the current one)."""
        name = phase or self.phase
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """The seconds so far; the clock starts again from nothing."""
        taken, self.seconds = self.seconds, {}
        return taken
