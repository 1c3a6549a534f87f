"""Pulls a model: as it was published, or packed while it arrives.

Unfinished work lies beside the destination: DST.download holds the listing, small files and shards,
DST.partial the growing pack. Killed at any moment, the same call goes on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.safetensors import Tensor, TensorFile
from flashmoe.errors import HubError, StorageError, UsageError
from flashmoe.files import read_small, storage_errors, sync_directory
from flashmoe.hub.address import Address
from flashmoe.hub.contents import whole_model
from flashmoe.hub.fetch import CONNECTIONS, Fetcher, fetch_all
from flashmoe.hub.headers import HubHeaders, write_whole
from flashmoe.hub.order import Order, make_order
from flashmoe.hub.partial_file import CHUNK_BYTES, PartialFile
from flashmoe.hub.repo import MAX_LISTING, Hub, Listing, RemoteFile
from flashmoe.library import DOWNLOAD, PARTIAL, Origin, origin_file
from flashmoe.store.pack import pack_open_checkpoint
from flashmoe.store.plan import Item, PackOptions

LISTING, FILES, SMALL = "listing.json", "files", "small"


@dataclass
class Meter:
    """What is shown while a pull runs. Bytes; show: called after every change, by any thread."""

    show: Callable[[Meter], None] | None = None
    fetched: int = 0
    to_fetch: int = 0
    packed: int = 0
    to_pack: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def arrived(self, nbytes: int) -> None:
        """So many bytes came; negative: they were damaged."""
        with self._lock:
            self.fetched += nbytes
        self._changed()

    def packing(self, done: int, total: int) -> None:
        """The progress of the packer."""
        self.packed, self.to_pack = done, total
        self._changed()

    def _changed(self) -> None:
        if self.show is not None:
            self.show(self)


@dataclass(frozen=True)
class Pull:
    """How to pull. chunk_bytes: per request. sync_bytes: see pack_checkpoint."""

    hub: Hub
    connections: int = CONNECTIONS
    chunk_bytes: int = CHUNK_BYTES
    sync_bytes: int = 128 << 20

    def checkpoint(
        self,
        address: Address,
        destination: Path,
        patterns: Sequence[str] = (),
        meter: Meter | None = None,
    ) -> Origin:
        """Downloads what was published to the new directory `destination`.

        Raises HubAccessError, HubError, StorageError (the same call goes on), UsageError.
        """
        meter = meter or Meter()
        with _work_folder(destination) as work:
            listing = self._listing(address, work)
            files = whole_model(listing, patterns)
            folder = work / FILES
            meter.to_fetch = sum(file.size for file in files)
            self._check_space(folder, files)
            fetch_all(self._fetcher(listing, folder, None, meter), files)
            origin = Origin(address.repo, address.revision, listing.commit)
            _publish(folder, destination, origin)
            return origin

    def packed(
        self,
        address: Address,
        destination: Path,
        options: PackOptions,
        label: str,
        meter: Meter | None = None,
    ) -> Origin:
        """Packs a model while it arrives; the bytes are those of pack_checkpoint.

        label: the options for people, kept with the pack. On the disk are, at any time, the pack,
        the shards that unfinished items need, and one more that arrives. Raises as `checkpoint`,
        and as pack_checkpoint.
        """
        meter = meter or Meter()
        with _work_folder(destination) as work:
            listing = self._listing(address, work)
            origin = Origin(address.repo, address.revision, listing.commit, label)
            with storage_errors("cannot write", destination):
                write_whole(origin_file(destination), origin.to_json().encode())
            headers = HubHeaders(self.hub, listing, work / SMALL, work / FILES)

            def fetcher(room: int) -> Fetcher:
                return self._fetcher(listing, work / FILES, room, meter)

            arriving = _Arriving(headers, listing, fetcher, meter)
            try:
                pack_open_checkpoint(
                    arriving, destination, options, meter.packing, self.sync_bytes, arriving
                )
            finally:
                arriving.close()
            return origin

    def _listing(self, address: Address, work: Path) -> Listing:
        """The commit that an earlier call began with, or what the hub has now."""
        path = work / LISTING
        if path.exists():
            listing = Listing.from_json(
                read_small(path, MAX_LISTING, StorageError), path, StorageError
            )
            if listing.address != address:
                raise UsageError(
                    "an unfinished pull of another model is in the way",
                    where=work,
                    expected=address,
                    got=listing.address,
                    hint="Finish that, or delete it with `flashmoe rm`",
                )
            return listing
        listing = self.hub.listing(address)
        write_whole(path, listing.to_json().encode())
        return listing

    def _fetcher(self, listing: Listing, folder: Path, room: int | None, meter: Meter) -> Fetcher:
        return Fetcher(
            self.hub, listing, folder, room, self.connections, meter.arrived, self.chunk_bytes
        )

    def _check_space(self, folder: Path, files: Iterable[RemoteFile]) -> None:
        partials = [PartialFile(folder, file, self.chunk_bytes) for file in files]
        needed = sum(one.file.size - one.written_bytes() for one in partials)
        with storage_errors("cannot query free space", folder):
            free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise StorageError(
                "not enough disk space",
                where=folder,
                expected=f"{needed} bytes free",
                got=free,
                hint="Free some space and run the same command again, or pull with --pack",
            )


class _Arriving:
    """Source and Feed of the packer: waits for shards, deletes those that are used up."""

    def __init__(
        self,
        headers: HubHeaders,
        listing: Listing,
        fetcher: Callable[[int], Fetcher],
        meter: Meter,
    ) -> None:
        self.path, self.config, self.tensors = headers.path, headers.config, headers.tensors
        self.small_files = headers.small_files
        self.files: dict[Path, Any] = {
            headers.shards / name: _Shard(listing.files[name].size) for name in headers.names
        }
        self._listing, self._make, self._meter = listing, fetcher, meter
        self._folder = headers.shards
        self._fetcher: Fetcher | None = None
        self._open: dict[Path, TensorFile] = {}

    def read(self, tensor: Tensor, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes [start, start + nbytes) of a tensor -> uint8 [nbytes], once its shard is there."""
        if tensor.path not in self._open:
            self._open[tensor.path] = self._arrival(tensor.path)
        return self._open[tensor.path].read(tensor.offset + start, nbytes)

    def batches(self, items: Sequence[Item]) -> Iterable[Sequence[Item]]:
        """In an order that needs few shards at once; begins to fetch them."""
        order = self._order(items)
        self._last, self._done = order.last_uses(), 0
        files = [self._listing.files[name] for name in order.arrivals]
        self._meter.to_fetch = sum(file.size for file in files)
        self._drop_others(order.arrivals)
        self._fetcher = self._make(_room(order, files))
        self._fetcher.start(files)
        return [batch.items for batch in order.batches]

    def written(self, batch: Sequence[Item]) -> None:
        """Deletes the shards that no later batch reads."""
        assert self._fetcher is not None
        for name in [name for name, last in self._last.items() if last == self._done]:
            if (file := self._open.pop(self._folder / name, None)) is not None:
                file.close()
            self._fetcher.release(name)
        self._done += 1

    def source_bytes(self, items: Sequence[Item]) -> int:
        """The room for shards, less what is there of them."""
        order = self._order(items)
        files = [self._listing.files[name] for name in order.arrivals]
        here = sum(PartialFile(self._folder, file).written_bytes() for file in files)
        return max(0, _room(order, files) - here)

    def close(self) -> None:
        """Stops the download and closes all shards."""
        if self._fetcher is not None:
            self._fetcher.close()
        for file in self._open.values():
            file.close()

    def _order(self, items: Sequence[Item]) -> Order:
        sizes = {path.name: shard.size for path, shard in self.files.items()}
        return make_order(items, sizes)

    def _arrival(self, path: Path) -> TensorFile:
        assert self._fetcher is not None
        file = TensorFile(self._fetcher.wait(path.name))
        expected = {name: tensor for name, tensor in self.tensors.items() if tensor.path == path}
        if file.tensors != expected:
            file.close()
            raise HubError("shard is not the one whose header was read", where=path)
        return file

    def _drop_others(self, wanted: Iterable[str]) -> None:
        """Deletes shards that were used up just before the last run was killed."""
        keep = set(wanted)
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name.removesuffix(".incomplete").removesuffix(".chunks") not in keep:
                    path.unlink()


@dataclass(frozen=True)
class _Shard:
    """What the packer's fingerprint asks of a source file; the commit stands for its age."""

    size: int
    mtime_ns: int = 0


def _room(order: Order, files: Sequence[RemoteFile]) -> int:
    """Disk space for shards: those needed at once, and one that arrives meanwhile."""
    return order.peak + max((file.size for file in files), default=0)


@contextmanager
def _work_folder(destination: Path) -> Iterator[Path]:
    """DST.download, locked; removed when the block has made DST."""
    work = destination.with_name(destination.name + DOWNLOAD)
    if destination.exists():
        clean_up(destination)
        raise UsageError("destination already exists", where=destination)
    with storage_errors("cannot create", work):
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(lock, work)
        yield work
    finally:
        os.close(lock)
    clean_up(destination)


def _lock(fd: int, work: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        raise UsageError("another pull is running", where=work) from cause


def clean_up(destination: Path) -> None:
    """Removes what was left beside a finished destination, also by a run that was killed."""
    for ending in (DOWNLOAD, PARTIAL):
        left = destination.with_name(destination.name + ending)
        with storage_errors("cannot delete", left):
            if destination.exists() and left.is_dir():
                shutil.rmtree(left)


def _publish(folder: Path, destination: Path, origin: Origin) -> None:
    write_whole(origin_file(destination), origin.to_json().encode())
    with storage_errors("cannot rename the finished download", destination):
        os.rename(folder, destination)
    sync_directory(destination.parent)
