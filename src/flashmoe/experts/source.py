"""What the cache reads from and with: protocols, so that tests and other stores fit in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from flashmoe.store.extent import Extent

READ_ALIGNMENT: Final = 4096
"""Offsets and sizes of records, in bytes, are multiples of this."""

# Statuses of a read, as in native/stream/reader.h; a positive status is an errno.
READ_OK: Final = 0
SHORT_READ: Final = -1
BAD_CHECKSUM: Final = -2
CANCELLED: Final = -3


class ExpertSource(Protocol):
    """A packed model, as the cache sees it."""

    @property
    def files(self) -> Sequence[Path]:
        """Every file that an extent may name."""

    def extent(self, layer: int, expert: int) -> Extent:
        """Where the expert's record lies."""


class Reader(Protocol):
    """Reads in the background (flashmoe._native.Reader; tests/support/fake_reader.py)."""

    def open(self, path: str) -> int:
        """A handle. Raises OSError."""

    def direct(self, handle: int) -> bool:
        """Whether reads bypass the page cache; False where the file system refuses that."""

    def close_file(self, handle: int) -> None: ...

    def submit(
        self, tag: int, handle: int, offset: int, nbytes: int, address: int, crc: int | None
    ) -> None:
        """Queue a read into memory that must stay until it has landed."""

    def wait(self, timeout_s: float) -> Sequence[tuple[int, int, int]]:
        """(tag, status, detail) of what has landed since the last call.

        Blocks until there is something; empty after timeout_s, and at once when nothing is queued
        or being read. Detail: bytes got of a short read, checksum found of a bad one.
        """

    def cancel(self) -> None:
        """Drop what has not started (CANCELLED), return when what had started has landed."""
