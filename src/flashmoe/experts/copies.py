"""Copies of expert records from pinned memory to the card, and what is done meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.ticket import Ticket
from flashmoe.ops.cuda.routed import ExpertArena


def nothing(addresses: Mapping[int, int]) -> None:
    """What Beside.compute does where the CPU has no share."""


@dataclass(frozen=True)
class Beside:
    """What is done while copies are under way.

    guess: a layer, and experts of it to be read while the disk is idle. host: experts in RAM that
    are not copied; `compute` is called with the addresses of their records.
    """

    guess: tuple[int, Sequence[int]] | None = None
    host: Sequence[int] = ()
    compute: Callable[[Mapping[int, int]], None] = nothing


class CopyQueue:
    """Copies of records out of pinned memory, on their own stream."""

    def __init__(self, pinned: torch.Tensor, address: int, arena: ExpertArena) -> None:
        self._pinned, self._address = pinned, address
        self._device = arena.words.device
        self._slots = arena.words.view(torch.uint8).view(-1, arena.record_bytes)
        self._stream = torch.cuda.Stream() if self._device.type == "cuda" else None
        self._open: Ticket | None = None
        self.copied_bytes = 0

    def pull(
        self,
        ram: ExpertCache,
        layer: int,
        loads: Mapping[int, int],
        after: torch.cuda.Event | None = None,
        beside: Beside | None = None,
    ) -> None:
        """Start the copies of experts -> slots. after: what must have happened on the card before.

        Returns when the last copy is queued; where the disk is involved that takes its time.
        """
        self.settle()
        beside = beside or Beside()
        experts = [*beside.host, *loads]
        ticket = ram.begin(layer, experts)
        self._open = ticket
        if beside.guess is not None:
            ram.guess(*beside.guess)
        if after is not None and self._stream is not None:
            self._stream.wait_event(after)
        left, here = len(experts), dict[int, int]()
        for batch in ticket.batches():
            for index, address in batch:
                if index < len(beside.host):
                    here[experts[index]] = address
                else:
                    self._copy(address - self._address, loads[experts[index]])
            left -= len(batch)
            if here:  # all at once: they are in RAM
                beside.compute(here)
                here = {}
            if left == 0:
                break  # what was handed out last stays held until `settle`
            self._wait()

    def settle(self) -> None:
        """Wait until the copies have left RAM, whose slots may be overwritten from now on."""
        if self._open is not None:
            self._wait()
            self._open.close()
            self._open = None

    def before_compute(self) -> None:
        """Device work from now on comes after the copies so far."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def now(self) -> torch.cuda.Event | None:
        """All device work so far, as something that copies can wait for."""
        return None if self._stream is None else torch.cuda.current_stream().record_event()

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _copy(self, offset: int, slot: int) -> None:
        target = self._slots[slot]
        source = self._pinned[offset : offset + len(target)]
        if self._stream is None:
            target.copy_(source)
        else:
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
        self.copied_bytes += len(target)

    def seconds_per_record(self, count: int) -> float:
        """Measured over up to `count` copies; the slots they go to must be empty."""
        count = min(count, len(self._slots), len(self._pinned) // self._slots.shape[1])
        self._copy(0, 0)
        self._wait()
        begin = perf_counter()
        for slot in range(count):
            self._copy(slot * self._slots.shape[1], slot)
        self._wait()
        return (perf_counter() - begin) / count
