"""Device time per phase: an event wherever the phase changes, read when the pass is over."""

from __future__ import annotations

import torch

from flashmoe.ops.clock import PhaseClock


class DeviceClock(PhaseClock):
    """As PhaseClock, for work that runs behind the host. Nothing is timed inside a capture."""

    def __init__(self, device: torch.device) -> None:
        self._marks: list[tuple[str, torch.cuda.Event]] = []
        self._timed = device.type == "cuda"
        super().__init__()

    @property
    def phase(self) -> str:
        """The phase that work launched from now on belongs to."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        if self._timed and not torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call; waits for the device."""
        if self._marks:
            self.phase = "other"
            self._marks[-1][1].synchronize()
            for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
                self.add(begin.elapsed_time(end) / 1000, name)
            self._marks.clear()
        return super().take()
