"""What the cache reads from and with: protocols, so that tests and other stores fit in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from flashmoe import _native
from flashmoe.store.extent import Extent
from flashmoe.store.landing import Landing

READ_ALIGNMENT: Final = 4096
"""Offsets and sizes of records, in bytes, are multiples of this."""

# Statuses of a read, as in native/stream/reader.h; a positive status is an errno.
READ_OK: Final = 0
SHORT_READ: Final = -1
BAD_CHECKSUM: Final = -2
CANCELLED: Final = -3
FILE_CHANGED: Final = -4
NOT_FINITE: Final = -5


Read = tuple[int, int, int, int, int, int | None]
"""tag, handle, offset, nbytes, address (memory that must stay until it has landed), crc32c or None
where it is not checked."""


LandingRead = tuple[int, _native.Landing, int]
"""tag, an expert of a checkpoint, address of its record."""


class ExpertSource(Protocol):
    """A packed model or a checkpoint, as the cache sees it."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""

    @property
    def files(self) -> Sequence[Path]:
        """Every file that an extent may name."""

    def extent(self, layer: int, expert: int) -> Extent | Landing:
        """Where the expert's record lies, or how it is made."""


class Reader(Protocol):
    """Reads in the background (flashmoe._native.Reader; tests/support/fake_reader.py)."""

    def open(self, path: str) -> int:
        """A handle. Raises OSError."""

    def direct(self, handle: int) -> bool:
        """Whether reads bypass the page cache; False where the file system refuses that."""

    def close_file(self, handle: int) -> None: ...

    def submit_many(self, reads: Sequence[Read], guess: bool = False) -> None:
        """Queue demands, or guesses: these are read only while the disk is idle."""

    def submit_landings(self, reads: Sequence[LandingRead], guess: bool = False) -> None:
        """The same for experts of a checkpoint."""

    def keep_guesses(self, tags: Sequence[int]) -> None:
        """The guesses with these tags become demands; all others are CANCELLED, without waiting.

        Tags of what has landed are ignored. A dropped guess that is almost read may land good.
        """

    def wait(self, timeout_s: float) -> Sequence[tuple[int, int, int]]:
        """(tag, status, detail) of what has landed since the last call, guesses too.

        Blocks until a demand has landed; returns after timeout_s, and at once when no demand is
        queued or being read. Detail: bytes got of a short read, checksum found of a bad one,
        bytes read in vain of a cancelled one.
        """

    def cancel(self) -> None:
        """Drop what has not started (CANCELLED), return when all the rest has landed."""

    def stats(self) -> Mapping[str, float]:
        """Totals: reading_s, in which anything was being read; cpu_s, processor time of reads;
        checksum_s, processor time of checksums; landing_s, of turning bytes into records."""
