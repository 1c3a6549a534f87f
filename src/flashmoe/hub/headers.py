"""A checkpoint on the hub of which only headers and small files were read: no tensor's bytes.

That is enough to plan its pack and to tell how it would run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flashmoe.checkpoint.directory import (
    CONFIG,
    INDEX,
    MAX_SMALL_FILE,
    read_config_json,
    read_index,
)
from flashmoe.checkpoint.safetensors import Tensor, header_length, parse_header
from flashmoe.errors import CheckpointError, HubError
from flashmoe.files import read_small, storage_errors
from flashmoe.hub.contents import shard_names, small_files
from flashmoe.hub.repo import Hub, Listing, RemoteFile

# Most headers are shorter: one request gives length and header.
FIRST_BYTES = 256 << 10
_CONNECTIONS = 8
_HEADER = ".header"


class HubHeaders:
    """Config, tensors and small files of a commit; `folder` keeps them, and later calls read there.

    path: a name for messages; its last part is the model's. tensors: with the paths that the shards
    would have in `shards`.
    """

    def __init__(
        self, hub: Hub, listing: Listing, folder: Path, shards: Path | None = None
    ) -> None:
        self._hub, self._listing, self._folder = hub, listing, folder
        self.path = folder / listing.address.name
        self.shards = shards or self.path
        with storage_errors("cannot create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._get_small_files()
        self.config: dict[str, Any] = read_config_json(folder)
        self.names = shard_names(listing, self._weight_map())
        self.tensors = self._read_headers()

    def small_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """Content of those of the named text files that exist."""
        return {
            name: read_small(self._folder / name, MAX_SMALL_FILE, CheckpointError)
            for name in names
            if name in self._listing.files
        }

    def _get_small_files(self) -> None:
        if CONFIG not in self._listing.files:
            raise HubError("config.json is missing", where=self._listing.address)
        for file in small_files(self._listing):
            path = self._folder / file.name
            if not path.exists():
                write_whole(path, self._checked(file))

    def _checked(self, file: RemoteFile) -> bytes:
        """A small file's bytes, as they were published."""
        if file.size > MAX_SMALL_FILE:
            raise CheckpointError("file is too large", where=file.name, got=f"{file.size} bytes")
        data = self._hub.read(self._listing, file.name, 0, file.size)
        check_digest(file, digest_of(file, [data]))
        return data

    def _weight_map(self) -> dict[str, str] | None:
        return read_index(self._folder / INDEX) if INDEX in self._listing.files else None

    def _read_headers(self) -> dict[str, Tensor]:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            headers = list(pool.map(self._header, self.names))
        tensors: dict[str, Tensor] = {}
        for name, header in zip(self.names, headers, strict=True):
            size = self._listing.files[name].size
            found = parse_header(header, size - 8 - len(header), self.shards / name)
            if twice := tensors.keys() & found.keys():
                raise CheckpointError("tensor is in two shards", where=name, got=min(twice))
            tensors |= found
        _check_index(self._weight_map(), tensors, self._listing)
        return tensors

    def _header(self, name: str) -> bytes:
        """The JSON header of a shard."""
        path = self._folder / (name + _HEADER)
        if path.exists():
            return read_small(path, MAX_SMALL_FILE, CheckpointError)
        size = self._listing.files[name].size
        start = self._hub.read(self._listing, name, 0, min(FIRST_BYTES, size))
        end = 8 + header_length(start, size, Path(name))
        if end > len(start):
            start += self._hub.read(self._listing, name, len(start), end)
        write_whole(path, start[8:end])
        return start[8:end]


def _check_index(
    weight_map: dict[str, str] | None, tensors: dict[str, Tensor], listing: Listing
) -> None:
    if weight_map is None:
        return
    found = {name: tensor.path.name for name, tensor in tensors.items()}
    if found != weight_map:
        odd = min({*found.items()} ^ {*weight_map.items()})
        raise CheckpointError("index and shards disagree", where=listing.address, got=odd[0])


def digest_of(file: RemoteFile, blocks: Sequence[bytes]) -> str:
    """The digest of a file's bytes, of the kind that the hub names for it; "" if it names none."""
    hasher = new_hasher(file)
    for block in blocks:
        hasher.update(block)
    return hasher.hexdigest() if file.sha256 or file.oid else ""


def new_hasher(file: RemoteFile) -> hashlib._Hash:
    """SHA-256, or the SHA-1 of a git object, which begins with the file's size."""
    if file.sha256 or not file.oid:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def check_digest(file: RemoteFile, digest: str) -> None:
    """Raises HubError if a digest is not the published one."""
    expected = file.sha256 or file.oid
    if digest != expected:
        raise HubError(
            "checksum does not match",
            where=file.name,
            expected=expected,
            got=digest,
            hint="Run the same command again; if it happens twice, the copy on the hub is damaged",
        )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all. Raises StorageError."""
    part = path.with_name(path.name + ".part")
    with storage_errors("cannot write", path):
        part.write_bytes(data)
        os.replace(part, path)
