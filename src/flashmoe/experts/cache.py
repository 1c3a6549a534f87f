"""The expert cache: slots in one arena, filled by reads that run while hits are computed.

`begin` plans and starts the reads of one layer; its ticket hands the experts out as they become
available. For one engine thread: at most one ticket is open, and the next `begin` closes it.
The order in which experts arrive varies; which are resident afterwards does not.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.experts.addresses import AddressBook, Addresses
from flashmoe.experts.arena import take_arena
from flashmoe.experts.fetch import Fetcher, Verify
from flashmoe.experts.interrupts import uninterrupted
from flashmoe.experts.plan import plan
from flashmoe.experts.policy import Key, Lru, Policy
from flashmoe.experts.residency import Residency, SlotState
from flashmoe.experts.source import READ_ALIGNMENT, ExpertSource, Reader
from flashmoe.experts.stats import CacheStats
from flashmoe.experts.ticket import Ticket
from flashmoe.files import storage_errors
from flashmoe.ops.base import Ints
from flashmoe.ops.threads import thread_errors

_log = logging.getLogger(__name__)

# Uses kept back from the policy while nothing is missed: together they cost it fewer cache misses.
_MOST_USES = 4096


class SlotMemory(Protocol):
    """Memory that does not move (flashmoe._native.Arena). Sizes in bytes."""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def release(self, offset: int, nbytes: int) -> None:
        """Give a part back to the system; it may be written again. Raises OSError."""


class ExpertCache:
    """Expert records in memory, read on demand or, into spare memory, on a guess.

    Args:
        source: where the records are.
        memory: starts at a multiple of 4096; holds as many slots as fit, at least one.
        staging: slots of the memory that are set apart for guesses.
        reader: used by this cache alone.
        slot_bytes: size of the largest record, a multiple of 4096.
        policy: order of eviction; default least recently used over all layers.
        keep: False drops everything at `end_step`.
        verify: when the checksum of a record is checked.

    table: of resident experts; uses of them that are noted there count as hits at `end_step`.

    Addresses that tickets hand out are good only as long as the cache is open. Raises StorageError
    if a file of the source cannot be opened.
    """

    def __init__(
        self,
        source: ExpertSource,
        memory: SlotMemory,
        reader: Reader,
        *,
        slot_bytes: int,
        staging: int = 0,
        policy: Policy | None = None,
        keep: bool = True,
        verify: Verify = "first",
    ) -> None:
        assert slot_bytes > 0, "slots must have a size"
        assert (slot_bytes | memory.address) % READ_ALIGNMENT == 0, "slots must be aligned"
        self.stats, self.keep, self.staging = CacheStats(), keep, staging
        self.slot_bytes = slot_bytes
        slots = memory.nbytes // slot_bytes - staging
        self.table = _native.ResidentTable(source.num_experts)
        self._residency = Residency(slots, policy or Lru(), self.table.take_uses)
        self._book = AddressBook(self._places(memory), slots, self.table)
        # Attributes are freed in this order: the reader before the memory that it writes into.
        self._fetcher = Fetcher(source, reader, self._book, slot_bytes, verify, self.stats)
        self._memory: SlotMemory | None = memory
        self._open: Ticket | None = None
        self._warn_of_buffered_files()

    @property
    def slots(self) -> int:
        """Experts that can be resident; memory for `staging` more is set apart."""
        return self._residency.slots

    @property
    def capacity(self) -> int:
        """The most slots: those that the memory holds beside `staging`."""
        assert self._memory is not None, "the cache is closed"
        return self._memory.nbytes // self.slot_bytes - self.staging

    @property
    def nbytes(self) -> int:
        """Memory for slots and guesses."""
        return (self.slots + self.staging) * self.slot_bytes

    @property
    def buffered_files(self) -> tuple[Path, ...]:
        """Files read through the page cache because their file system refuses O_DIRECT."""
        return self._fetcher.buffered_files

    def reader_stats(self) -> Mapping[str, float]:
        """What the reader counts: see Reader.stats."""
        return self._fetcher.reader_stats()

    def resident(self) -> frozenset[Key]:
        """The (layer, expert) pairs that a `begin` would find now."""
        return self._residency.resident()

    def in_memory(self, layer: int, ids: Ints) -> NDArray[np.bool_]:
        """Which of the experts ids [n] a `begin` would find now."""
        slots = [self._residency.slot_of((layer, expert)) for expert in ids.tolist()]
        return np.array([slot is not None for slot in slots])

    def begin(self, layer: int, ids: Sequence[int]) -> Ticket:
        """Start the reads of the experts that are missing.

        Args:
            layer: index of the layer, as the source counts.
            ids: distinct experts in the order in which they are best computed. Where they are more
                than the slots, some are read only after others have been computed.
        """
        assert self._memory is not None, "the cache is closed"
        self._close_ticket()
        wanted = [(layer, expert) for expert in ids]
        decided = plan(wanted, self._residency)
        self.stats.hits += len(decided.hits)
        self.stats.misses += len(decided.loads)
        ticket = Ticket(wanted, decided, self._residency, self._book, self._fetcher, self.stats)
        self._open = ticket
        ticket.start()
        return ticket

    def find(self, layer: int, ids: Ints) -> Addresses | None:
        """The K addresses of distinct experts int32 [1, K], counted as hits and used; None, and
        nothing done, unless all are resident. Good until the next `begin` or `find`."""
        assert self._memory is not None, "the cache is closed"
        if self._open is not None:
            self._close_ticket()
        found = self._book.find(layer, ids)
        if found is not None:
            if self._fetcher.guessing:
                self._fetcher.settle_guesses(())
            self.stats.hits += self.table.take_hits()
        return found

    def guess(self, layer: int, experts: Iterable[int]) -> None:
        """Read what is missing of these experts, the likeliest first, while the disk is idle.

        Only the next `begin` or `find` can gain from it. Residency is not changed by any guess.
        """
        keys = ((layer, expert) for expert in experts)
        self._fetcher.guess([key for key in keys if self._residency.slot_of(key) is None])

    def end_step(self) -> None:
        """All layers of a step are done: without `keep`, drop every expert."""
        self._close_ticket()
        self._fetcher.settle_guesses(())
        self.stats.hits += self.table.take_hits()
        if self.table.uses >= _MOST_USES:
            self._residency.tell_uses()
        if not self.keep:
            self.clear()

    def clear(self) -> None:
        """Drop every expert."""
        self._close_ticket()
        for key in sorted(self._residency.resident()):
            self._drop(key)

    def resize(self, slots: int) -> None:
        """Use `slots` slots, 1 to capacity, from now on; called between steps.

        Fewer: the coldest experts are dropped, the others moved together, and the memory behind
        them is given back (whole huge pages: single slots would leave pieces of them). More: the
        new slots are empty. Ctrl-C is heard before or after, never in between. Raises StorageError
        if the system does not take the memory back.
        """
        assert self._memory is not None, "the cache is closed"
        assert 1 <= slots <= self.capacity, "more slots than the memory holds"
        self._close_ticket()
        self._fetcher.drain()  # no guess may write into memory that moves or goes
        with uninterrupted():
            self._resize(self._memory, slots)

    def _resize(self, memory: SlotMemory, slots: int) -> None:
        before = self.nbytes
        for key in self._residency.surplus(slots):
            self._drop(key)
        self._move_together(memory, self._residency.resize(slots))
        if self.nbytes < before:
            with storage_errors("the memory of the cache cannot be given back", "cache"):
                memory.release(self.nbytes, before - self.nbytes)

    def _move_together(self, memory: SlotMemory, renumbered: list[tuple[int, int]]) -> None:
        moves = self._book.resize(self._places(memory), self.slots, renumbered)
        for slot, old, new in moves:
            if self._residency.state(slot) is SlotState.READY:
                ctypes.memmove(new, old, self.slot_bytes)
        for key, slot in self._residency.items():
            self._book.publish(key, slot)
        self._fetcher.restage()

    def _places(self, memory: SlotMemory) -> range:
        """Address of every slot's memory, then of that for guesses."""
        return range(memory.address, memory.address + self.nbytes, self.slot_bytes)

    def _drop(self, key: Key) -> None:
        slot = self._residency.slot_of(key)
        assert slot is not None
        self._residency.drop(slot)
        self._book.withdraw(key)

    def close(self) -> None:
        """Stop the reads, close the files and let the memory go. Does nothing the second time."""
        self.clear()
        self._fetcher.close()
        self._memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _close_ticket(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _warn_of_buffered_files(self) -> None:
        if self.buffered_files:
            names = ", ".join(map(str, self.buffered_files))
            _log.warning("O_DIRECT is refused, reads go through the page cache: %s", names)


def open_cache(
    source: ExpertSource,
    *,
    slots: int,
    slot_bytes: int,
    staging: int = 0,
    reader_threads: int | None = None,
    policy: Policy | None = None,
    keep: bool = True,
    verify: Verify = "first",
    make_reader: Callable[[int], Reader] | None = None,
) -> ExpertCache:
    """A cache with an arena and a reader of its own; arguments as for ExpertCache.

    slots: of the whole arena, those for guesses included. reader_threads: reads in flight; default
    `default_reader_threads()`. make_reader: a reader of that many threads; default the native one.
    Raises MemoryBudgetError if the system does not give the memory, StorageError if a file of the
    source cannot be opened.
    """
    memory = take_arena(slots * slot_bytes, "the expert cache")
    threads = reader_threads or default_reader_threads()
    with thread_errors("readers", threads):
        reader = (make_reader or _native.Reader)(threads)
    return ExpertCache(
        source,
        memory,
        reader,
        slot_bytes=slot_bytes,
        staging=staging,
        policy=policy,
        keep=keep,
        verify=verify,
    )


def default_reader_threads() -> int:
    """4 to 8: fewer leave an SSD idle, more gain nothing."""
    return min(8, max(4, os.cpu_count() or 4))
