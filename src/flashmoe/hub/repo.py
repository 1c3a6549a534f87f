"""What a repository holds, and its bytes: from the hub, or from the cache of huggingface_hub.

Files of the same commit that other tools have downloaded already (HF_HOME) are not asked for again;
with HF_HUB_OFFLINE there is nothing but them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from flashmoe.errors import FlashMoeError, HubError, UsageError
from flashmoe.files import opened, storage_errors
from flashmoe.hub.address import Address
from flashmoe.hub.transport import BLOCK_BYTES, Transport
from flashmoe.strict_json import Fields, parse

MAX_LISTING = 64 << 20
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. sha256: of its content, "" for small ones; these have their git
    object's SHA-1, oid, instead."""

    name: str
    size: int
    sha256: str = ""
    oid: str = ""


@dataclass(frozen=True)
class Listing:
    """A commit of a repository and its files."""

    address: Address
    commit: str
    files: Mapping[str, RemoteFile]

    def to_json(self) -> str:
        """For the record of an unfinished download."""
        files = [asdict(file) for file in self.files.values()]
        raw = {**asdict(self.address), "commit": self.commit, "files": files}
        return json.dumps(raw) + "\n"

    @classmethod
    def from_json(cls, data: bytes, where: Path, error: type[FlashMoeError]) -> Listing:
        """What to_json wrote; raises `error` for anything else."""
        fields = Fields(parse(data, where, error), str(where), error)
        address = Address(fields.text("repo"), fields.text("revision"))
        commit = fields.text("commit")
        files = [_stored(Fields(raw, str(where), error)) for raw in fields.items("files")]
        return cls(address, commit, {file.name: file for file in files})


def _stored(fields: Fields) -> RemoteFile:
    texts = fields.string("sha256"), fields.string("oid")
    return RemoteFile(fields.text("name"), fields.integer("size"), *texts)


class Hub:
    """The hub as the environment configures it (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).

    transport: None while offline. cache: the folder of huggingface_hub's cache.
    """

    def __init__(self, transport: Transport | None, cache: Path) -> None:
        self._transport, self._cache = transport, cache

    @classmethod
    def from_environment(cls) -> Hub:
        """Raises UsageError if huggingface_hub is not installed."""
        require_packages()
        from huggingface_hub import constants, get_token

        offline = constants.HF_HUB_OFFLINE
        transport = None if offline else Transport(constants.ENDPOINT, get_token())
        return cls(transport, Path(constants.HF_HUB_CACHE))

    def listing(self, address: Address) -> Listing:
        """Raises HubAccessError, HubError; while offline if the cache does not have the model."""
        if self._transport is None:
            return self._cached_listing(address)
        revision = quote(address.revision, safe="")
        url = f"{self._transport.endpoint}/api/models/{address.repo}/revision/{revision}?blobs=true"
        data = self._transport.whole(url, MAX_LISTING)
        return _parse_listing(data, address, url)

    def blocks(self, listing: Listing, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file. Errors as for Transport.blocks, and StorageError."""
        cached = self.cached(listing, name)
        if cached is not None:
            return _local_blocks(cached, start, stop)
        if self._transport is None:
            raise _offline(f"{listing.address}: {name}")
        commit, path = quote(listing.commit, safe=""), quote(name)
        base = f"{self._transport.endpoint}/{listing.address.repo}"
        return self._transport.blocks(f"{base}/resolve/{commit}/{path}", start, stop)

    def read(self, listing: Listing, name: str, start: int, stop: int) -> bytes:
        """The same in one piece."""
        return b"".join(self.blocks(listing, name, start, stop))

    def cached(self, listing: Listing, name: str) -> Path | None:
        """The file in huggingface_hub's cache, if it is there whole."""
        folder = self._repo_folder(listing.address.repo) / "snapshots" / listing.commit
        path = folder / name
        if not path.is_file() or path.stat().st_size != listing.files[name].size:
            return None
        return path

    def stop(self) -> None:
        """Ends all transfers."""
        if self._transport is not None:
            self._transport.stop()

    def close(self) -> None:
        """Closes all connections, once the threads that used them are gone."""
        if self._transport is not None:
            self._transport.close()

    def _repo_folder(self, repo: str) -> Path:
        return self._cache / f"models--{repo.replace('/', '--')}"

    def _cached_listing(self, address: Address) -> Listing:
        folder = self._repo_folder(address.repo)
        ref = folder / "refs" / address.revision
        with storage_errors("cannot read", folder):
            commit = ref.read_text().strip() if ref.is_file() else address.revision
            snapshot = folder / "snapshots" / commit
            if not snapshot.is_dir():
                raise _offline(address)
            paths = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
            files = [_cached_file(path, snapshot) for path in paths]
        return Listing(address, commit, {file.name: file for file in files})


def require_packages() -> None:
    """Raises UsageError if what the extra `hub` brings is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("huggingface_hub", "httpx") if find_spec(name) is None]
    if missing:
        raise UsageError(
            "packages are missing",
            where=", ".join(missing),
            hint="Install them: pip install 'flashmoe[hub]'",
        )


def _offline(where: object) -> HubError:
    return HubError(
        "not in the cache of huggingface_hub, and HF_HUB_OFFLINE is set",
        where=where,
        hint="Unset HF_HUB_OFFLINE to download it",
    )


def _cached_file(path: Path, snapshot: Path) -> RemoteFile:
    # The cache names what its links point to by checksum: SHA-256, or git's for small files.
    digest = os.path.basename(os.path.realpath(path))
    known = digest if _HEX.fullmatch(digest) else ""
    sha256, oid = (known if len(known) == length else "" for length in (64, 40))
    return RemoteFile(path.relative_to(snapshot).as_posix(), path.stat().st_size, sha256, oid)


def _local_blocks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with opened(path) as fd:
        for position in range(start, stop, BLOCK_BYTES):
            with storage_errors("cannot read", path):
                data = os.pread(fd, min(BLOCK_BYTES, stop - position), position)
            if not data:
                raise HubError("file ends too early", where=path)
            yield data


def _parse_listing(data: bytes, address: Address, url: str) -> Listing:
    fields = Fields(parse(data, url, HubError), url, HubError)
    commit = fields.text("sha")
    if not _HEX.fullmatch(commit):
        fields.fail("sha", "a commit", commit)
    files = [_listed(Fields(raw, url, HubError)) for raw in fields.items("siblings")]
    return Listing(address, commit, {file.name: file for file in files})


def _listed(fields: Fields) -> RemoteFile:
    name = fields.text("rfilename")
    if ".." in name.split("/") or name.startswith("/") or not name.isprintable():
        fields.fail("rfilename", "a path inside the repository", name)
    sha256 = fields.fields("lfs").text("sha256") if _given(fields, "lfs") else ""
    oid = fields.text("blobId") if not sha256 and fields.has("blobId") else ""
    return RemoteFile(name, fields.integer("size"), sha256, oid)


def _given(fields: Fields, key: str) -> bool:
    """Whether a key is there and not null."""
    return fields.has(key) and fields.value(key) is not None
