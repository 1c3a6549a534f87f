"""A file that is being downloaded in chunks, in any order, and survives kill -9.

NAME.incomplete has its final size and holes where chunks are missing; NAME.chunks lists the numbers
of those that are written, one per line. The name itself appears when the content was verified.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from flashmoe.files import opened, storage_errors, sync, sync_directory, write_exactly
from flashmoe.hub.headers import check_digest, new_hasher
from flashmoe.hub.repo import RemoteFile

CHUNK_BYTES = 32 << 20
_HASH_BYTES = 4 << 20


class PartialFile:
    """The state of one download in `folder`; opened anew, it is where it was."""

    def __init__(self, folder: Path, file: RemoteFile, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.file, self.path = file, folder / file.name
        self._chunk = chunk_bytes
        self._data = self.path.with_name(self.path.name + ".incomplete")
        self._record = self.path.with_name(self.path.name + ".chunks")
        self._fd: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the file is there, verified."""
        return self.path.exists()

    def missing(self) -> list[range]:
        """Byte ranges that are not written yet."""
        done = self._written()
        count = -(-self.file.size // self._chunk)
        return [self._range(number) for number in range(count) if number not in done]

    def written_bytes(self) -> int:
        """Bytes that need not be fetched again."""
        if self.finished:
            return self.file.size
        return self.file.size - sum(len(part) for part in self.missing())

    def open(self) -> None:
        """Makes the file at its full size."""
        with storage_errors("cannot create", self._data):
            self._data.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, self.file.size)

    def write(self, part: range, blocks: Iterable[bytes]) -> None:
        """Writes a missing range and notes it."""
        assert self._fd is not None
        position = part.start
        for block in blocks:
            write_exactly(self._fd, memoryview(block), position, self._data)
            position += len(block)
        assert position == part.stop
        with storage_errors("cannot write", self._record), self._record.open("a") as record:
            record.write(f"{part.start // self._chunk}\n")

    def finish(self) -> None:
        """Verifies the whole content, then gives it its name. Raises HubError, StorageError."""
        assert self._fd is not None
        check_digest(self.file, self._digest())
        sync(self._fd, self._data)
        with storage_errors("cannot rename", self._data):
            os.replace(self._data, self.path)
            self._record.unlink(missing_ok=True)
        sync_directory(self.path.parent)
        self.close()

    def discard(self) -> None:
        """Forgets what was written."""
        with storage_errors("cannot delete", self._data):
            self._record.unlink(missing_ok=True)
            self._data.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Closes the descriptor; what was written stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _range(self, number: int) -> range:
        start = number * self._chunk
        return range(start, min(start + self._chunk, self.file.size))

    def _written(self) -> set[int]:
        with storage_errors("cannot read", self._record):
            # The record without its file, or the file at another size, says nothing.
            if not self._data.exists() or self._data.stat().st_size != self.file.size:
                self._record.unlink(missing_ok=True)
                return set()
            data = self._record.read_bytes() if self._record.exists() else b""
        lines = data.split(b"\n")[:-1]  # the last line may be torn
        return {int(line) for line in lines if line.isdigit()}

    def _digest(self) -> str:
        if not self.file.sha256 and not self.file.oid:
            return ""
        hasher = new_hasher(self.file)
        with opened(self._data) as fd, storage_errors("cannot read", self._data):
            for position in range(0, self.file.size, _HASH_BYTES):
                hasher.update(os.pread(fd, _HASH_BYTES, position))
        return hasher.hexdigest()
