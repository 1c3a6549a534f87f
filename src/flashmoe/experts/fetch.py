"""Turns planned loads and guesses into reads, and what lands into good records or typed errors."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashmoe.errors import FlashMoeError, StorageError
from flashmoe.experts.addresses import AddressBook
from flashmoe.experts.faults import landing_error, read_error
from flashmoe.experts.landings import Landings
from flashmoe.experts.plan import Load
from flashmoe.experts.policy import Key
from flashmoe.experts.source import (
    CANCELLED,
    READ_OK,
    ExpertSource,
    LandingRead,
    Read,
    Reader,
)
from flashmoe.experts.staging import Staging
from flashmoe.experts.stats import CacheStats
from flashmoe.store.extent import Extent
from flashmoe.store.landing import Landing as SourceLanding

Verify = Literal["first", "always", "never"]
"""When a record's checksum is checked: on its first read, on every read, or not at all."""

_POLL_S = 0.1  # how long Ctrl-C may go unnoticed while waiting for the disk


@dataclass(frozen=True, slots=True)
class Landing:
    """The end of a read: error None means that the record is in its slot, whole and good."""

    load: Load
    nbytes: int
    error: FlashMoeError | None


class Fetcher:
    """The reads of one cache. Raises StorageError if a file of the source cannot be opened."""

    def __init__(
        self,
        source: ExpertSource,
        reader: Reader,
        book: AddressBook,
        slot_bytes: int,
        verify: Verify,
        stats: CacheStats,
    ) -> None:
        self._source, self._reader, self._stats = source, reader, stats
        self._book, self._slot_bytes = book, slot_bytes
        self._verify, self._verified = verify, set[Key]()
        self._tags = itertools.count()
        self._flying: dict[int, tuple[Load, Extent | SourceLanding]] = {}
        self._staging = Staging(book.spare())
        self._arrived: list[Landing] = []  # and not given out
        self._handles = {path: self._open(path) for path in source.files}
        self._landings = Landings(self._handles)

    @property
    def buffered_files(self) -> tuple[Path, ...]:
        """Files whose file system refuses O_DIRECT."""
        reader = self._reader
        return tuple(path for path, handle in self._handles.items() if not reader.direct(handle))

    def reader_stats(self) -> Mapping[str, float]:
        """See Reader.stats."""
        return self._reader.stats()

    @property
    def busy(self) -> bool:
        """Whether loads have been started that were not given out."""
        return bool(self._flying or self._arrived)

    @property
    def guessing(self) -> bool:
        """Whether there are guesses that may still come true."""
        return bool(self._staging.open)

    def start(self, loads: Iterable[Load]) -> None:
        """Fetch experts into their slots, which nobody uses any more."""
        reads = [self._read_of(load) for load in loads if not self._adopt(load)]
        self._submit(reads, guess=False)

    def guess(self, keys: Sequence[Key]) -> None:
        """Read these experts while the disk is idle, the likeliest first, as many as have room.

        None of them may be resident or be read already, except by a guess.
        """
        if self._staging.reading:
            self._arrived += self._land(self._reader.wait(0.0))
        open_keys = {guess.key for guess in self._staging.open}
        new = [key for key in keys if key not in open_keys][: self._staging.room]
        self._submit([self._guess_of(key) for key in new], guess=True)

    def settle_guesses(self, wanted: Collection[Key]) -> None:
        """The experts that are needed are known: drop all other guesses."""
        if not self._staging.open:
            return
        guesses = list(self._staging.open)
        kept = [guess.tag for guess in guesses if guess.key in wanted and not guess.landed]
        self._reader.keep_guesses(kept)
        for guess in guesses:
            guess.sure = guess.key in wanted
            if not guess.sure:
                self._stats.prefetch_wasted += (
                    self._cost(guess.key, guess.extent) if guess.landed else 0
                )
                self._staging.drop(guess)

    def arrived(self) -> list[Landing]:
        """What has landed, without waiting."""
        if not self.busy:
            return []
        landings = self._land(self._reader.wait(0.0))
        arrived, self._arrived = self._arrived, []
        return arrived + landings

    def wait(self) -> list[Landing]:
        """What has landed; blocks until something has. Something must be busy."""
        assert self.busy, "nothing is being read"
        landings = self.arrived()
        while not landings:
            landings = self._land(self._reader.wait(_POLL_S))
        return landings

    def drain(self) -> list[Landing]:
        """Stop what has not started, wait for the rest. Nothing is busy or guessed afterwards."""
        self._reader.cancel()
        landings = self._arrived + self._land(self._reader.wait(0.0))
        # An interrupt may have lost results between reader and here.
        self._arrived.clear()
        self._flying.clear()
        self._staging.reset(self._book.spare())
        return landings

    def restage(self) -> None:
        """Slots have other memory: so have guesses. Nothing may be busy or guessed."""
        self._staging.reset(self._book.spare())

    def close(self) -> None:
        self.drain()
        for handle in self._handles.values():
            self._reader.close_file(handle)
        self._handles.clear()

    def _open(self, path: Path) -> int:
        try:
            return self._reader.open(str(path))
        except OSError as error:
            raise StorageError(f"cannot be opened: {error.strerror}", where=path) from error

    def _adopt(self, load: Load) -> bool:
        """Take over the guess of this expert: its memory becomes the slot's."""
        guess = self._staging.claim(load.key)
        if guess is None:
            return False
        self._staging.give(self._book.swap(load.slot, guess.address))
        self._stats.prefetched += 1
        if guess.landed:
            self._arrived.append(Landing(load, self._cost(load.key, guess.extent), None))
        else:
            self._flying[guess.tag] = load, guess.extent
        return True

    def _submit(self, reads: Sequence[Read | LandingRead], guess: bool) -> None:
        plain: list[Read] = [read for read in reads if len(read) == 6]
        turned: list[LandingRead] = [read for read in reads if len(read) == 3]
        if plain:
            self._reader.submit_many(plain, guess)
        if turned:
            self._reader.submit_landings(turned, guess)

    def _cost(self, key: Key, extent: Extent | SourceLanding) -> int:
        """Bytes from the disk for an expert."""
        if isinstance(extent, Extent):
            return extent.nbytes
        return self._landings.of(key, extent).nbytes

    def _read_of(self, load: Load) -> Read | LandingRead:
        tag, extent = next(self._tags), self._source.extent(*load.key)
        self._flying[tag] = load, extent
        return self._read(tag, load.key, extent, self._book.of(load.slot))

    def _guess_of(self, key: Key) -> Read | LandingRead:
        guess = self._staging.add(next(self._tags), key, self._source.extent(*key))
        return self._read(guess.tag, key, guess.extent, guess.address)

    def _read(
        self, tag: int, key: Key, extent: Extent | SourceLanding, address: int
    ) -> Read | LandingRead:
        assert extent.nbytes <= self._slot_bytes, "a record is larger than a slot"
        if not isinstance(extent, Extent):
            return tag, self._landings.of(key, extent), address
        checked = self._verify == "always" or (
            self._verify == "first" and key not in self._verified
        )
        crc = extent.crc32c if checked else None
        return tag, self._handles[extent.path], extent.offset, extent.nbytes, address, crc

    def _land(self, results: Iterable[tuple[int, int, int]]) -> list[Landing]:
        landings = []
        for tag, status, detail in results:
            flying = self._flying.pop(tag, None)
            if flying is None:
                self._land_guess(tag, status, detail)
                continue
            load, extent = flying
            error = None if status == READ_OK else _error(load.key, extent, status, detail)
            if error is None:
                self._verified.add(load.key)
            landings.append(Landing(load, self._cost(load.key, extent), error))
        return landings

    def _land_guess(self, tag: int, status: int, detail: int) -> None:
        """A guess that failed is no error: if the expert is needed, it is read like any other."""
        guess, good = self._staging.land(tag, good=status == READ_OK)
        if status == READ_OK:
            self._verified.add(guess.key)
        if not good:
            nbytes = detail if status == CANCELLED else self._cost(guess.key, guess.extent)
            self._stats.prefetch_wasted += nbytes


def _error(key: Key, extent: Extent | SourceLanding, status: int, detail: int) -> FlashMoeError:
    if isinstance(extent, Extent):
        return read_error(key, extent, status, detail)
    return landing_error(key, extent, status, detail)
