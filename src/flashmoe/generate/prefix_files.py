"""Kept prefixes on disk: a file per piece, checked when it is read.

A file that is not what was written is never used: it is reported and removed. Files are written
beside their place, synced and renamed: after a power cut a name is missing or whole. The least
recently used go when the bound is reached.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np

from flashmoe import _native
from flashmoe.errors import StorageError
from flashmoe.files import storage_errors, sync, write_exactly
from flashmoe.generate.blocks import Bytes

_log = logging.getLogger(__name__)

MAGIC: Final = b"FMPX"
VERSION: Final = 1
# Magic, version, CRC-32C of the payload, its bytes, the name of the piece.
_HEADER = struct.Struct("<4sIIQ32s")


class PrefixFiles:
    """Pieces by name in one directory, at most `limit` bytes.

    root: what decides the content beside the tokens; each root has a folder of its own. Raises
    StorageError if the directory cannot be made or read.
    """

    def __init__(self, directory: Path, root: bytes, limit: int) -> None:
        self._folder, self._base, self._limit = directory / root.hex()[:32], directory, limit
        with storage_errors("cannot open the prefix cache", directory):
            self._folder.mkdir(parents=True, exist_ok=True)
            found = [
                (p.stat().st_mtime_ns, p, p.stat().st_size) for p in directory.glob("*/*.kept")
            ]
        self._sizes = OrderedDict((path, size) for _, path, size in sorted(found))
        self._total = sum(self._sizes.values())

    def __contains__(self, piece: tuple[bytes, str]) -> bool:
        return self._path(piece) in self._sizes

    def read(self, piece: tuple[bytes, str], nbytes: int) -> Bytes | None:
        """The payload, or None if there is none that is whole."""
        path = self._path(piece)
        if path not in self._sizes:
            return None
        try:
            with storage_errors("cannot read", path):
                data = np.fromfile(path, dtype=np.uint8)
                os.utime(path)
        except StorageError as error:
            self._discard(path, str(error))
            return None
        self._sizes.move_to_end(path)
        wrong = _what_is_wrong(data, piece[0], nbytes)
        if wrong is not None:
            self._discard(path, wrong)
            return None
        return data[_HEADER.size :]

    def write(self, piece: tuple[bytes, str], payload: Bytes) -> None:
        """Keep a piece, unless it is there already. A disk that refuses is reported, no more."""
        path, size = self._path(piece), _HEADER.size + payload.nbytes
        if path in self._sizes or size > self._limit:
            return
        while self._total + size > self._limit:
            self._discard(next(iter(self._sizes)))
        crc = _native.crc32c(payload)
        header = _HEADER.pack(MAGIC, VERSION, crc, payload.nbytes, piece[0])
        try:
            self._put(path, header, payload)
        except StorageError as error:
            _log.warning("A prefix is not kept on disk: %s", error)
            return
        self._sizes[path] = size
        self._total += size

    def _put(self, path: Path, header: bytes, payload: Bytes) -> None:
        # A name of this process: two servers may share the directory.
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        with storage_errors("cannot write", path):
            try:
                with beside.open("wb", buffering=0) as file:
                    write_exactly(file.fileno(), memoryview(header), 0, path)
                    write_exactly(file.fileno(), payload.data, len(header), path)
                    sync(file.fileno(), path)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)

    def _path(self, piece: tuple[bytes, str]) -> Path:
        name, kind = piece
        return self._folder / f"{name.hex()}.{kind}.kept"

    def _discard(self, path: Path, reason: str | None = None) -> None:
        if reason is not None:
            _log.warning("A kept prefix is not usable and is removed: %s: %s", path, reason)
        self._total -= self._sizes.pop(path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("Cannot remove %s: %s", path, error.strerror)


def _what_is_wrong(data: Bytes, name: bytes, nbytes: int) -> str | None:
    if data.nbytes < _HEADER.size:
        return "shorter than its header"
    magic, version, crc, length, written_name = _HEADER.unpack(data[: _HEADER.size].tobytes())
    if (magic, version) != (MAGIC, VERSION):
        return "not of this version"
    if written_name != name:
        return "the piece of another prefix"
    if length != nbytes or data.nbytes - _HEADER.size != nbytes:
        return f"expected {nbytes} bytes, got {data.nbytes - _HEADER.size}"
    return None if _native.crc32c(data[_HEADER.size :]) == crc else "the checksum differs"
