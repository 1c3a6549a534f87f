"""Turns planned loads into reads, and what lands into good records or typed errors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashmoe.errors import ChecksumError, FlashMoeError, StorageError
from flashmoe.experts.plan import Load
from flashmoe.experts.policy import Key
from flashmoe.experts.source import (
    BAD_CHECKSUM,
    READ_OK,
    SHORT_READ,
    ExpertSource,
    Reader,
)
from flashmoe.store.extent import Extent

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
        self, source: ExpertSource, reader: Reader, address: int, slot_bytes: int, verify: Verify
    ) -> None:
        self._source, self._reader = source, reader
        self._address, self._slot_bytes = address, slot_bytes
        self._verify, self._verified = verify, set[Key]()
        self._flying: dict[int, tuple[Load, Extent]] = {}
        self._handles = {path: self._open(path) for path in source.files}

    @property
    def buffered_files(self) -> tuple[Path, ...]:
        """Files whose file system refuses O_DIRECT."""
        reader = self._reader
        return tuple(path for path, handle in self._handles.items() if not reader.direct(handle))

    @property
    def flying(self) -> int:
        """Reads that have been started and have not landed."""
        return len(self._flying)

    def address_of(self, slot: int) -> int:
        return self._address + slot * self._slot_bytes

    def start(self, load: Load) -> None:
        """Queue the read of an expert into its slot."""
        extent = self._source.extent(*load.key)
        assert extent.nbytes <= self._slot_bytes, "a record is larger than a slot"
        checked = self._verify == "always" or (
            self._verify == "first" and load.key not in self._verified
        )
        self._flying[load.index] = load, extent
        self._reader.submit(
            load.index,
            self._handles[extent.path],
            extent.offset,
            extent.nbytes,
            self.address_of(load.slot),
            extent.crc32c if checked else None,
        )

    def wait(self) -> list[Landing]:
        """What has landed; blocks until something has. At least one read must be flying."""
        assert self._flying, "nothing is being read"
        while not (results := self._reader.wait(_POLL_S)):
            pass
        return self._land(results)

    def drain(self) -> list[Landing]:
        """Stop what has not started, wait for the rest. Nothing is flying afterwards."""
        self._reader.cancel()
        landings = self._land(self._reader.wait(0.0))
        self._flying.clear()  # an interrupt may have lost results between reader and here
        return landings

    def close(self) -> None:
        for handle in self._handles.values():
            self._reader.close_file(handle)
        self._handles.clear()

    def _open(self, path: Path) -> int:
        try:
            return self._reader.open(str(path))
        except OSError as error:
            raise StorageError(f"cannot be opened: {error.strerror}", where=path) from error

    def _land(self, results: Iterable[tuple[int, int, int]]) -> list[Landing]:
        landings = []
        for tag, status, detail in results:
            load, extent = self._flying.pop(tag)
            error = None if status == READ_OK else _error(load.key, extent, status, detail)
            if error is None:
                self._verified.add(load.key)
            landings.append(Landing(load, extent.nbytes, error))
        return landings


def _error(key: Key, extent: Extent, status: int, detail: int) -> FlashMoeError:
    where = f"{extent.path}: layer {key[0]}, expert {key[1]}, offset {extent.offset}"
    if status == SHORT_READ:
        return StorageError(
            "the file ends inside an expert",
            where=where,
            expected=f"{extent.nbytes} bytes",
            got=f"{detail} bytes",
            hint="The file was cut short after it was packed: pack or copy the model again",
        )
    if status == BAD_CHECKSUM:
        assert extent.crc32c is not None
        return ChecksumError(
            "an expert is damaged",
            where=where,
            expected=f"crc32c {extent.crc32c:08x}",
            got=f"{detail:08x}",
            hint="Run `flashmoe verify`; if it agrees, pack or copy the model again",
        )
    reason = os.strerror(status) if status > 0 else "cancelled"
    return StorageError(
        f"an expert could not be read: {reason}",
        where=where,
        expected=f"{extent.nbytes} bytes",
        got=f"{detail} bytes",
    )
