"""Executes a pack plan: streams from the checkpoint to DST.partial, resumes, appears atomically.

DST.partial holds `journal` and the growing `pack`, which is renamed to DST when it is complete. The
result depends on checkpoint and options only, not on how often the work was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from flashmoe import _native
from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.quantization import read_quantization
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError, StorageError, UsageError
from flashmoe.files import storage_errors, sync, sync_directory, write_exactly
from flashmoe.models.registry import family_name, load_family
from flashmoe.quant.layout import Bytes
from flashmoe.store import format as fmt
from flashmoe.store.calibrated import CalibratedExperts
from flashmoe.store.calibration import Calibration
from flashmoe.store.journal import Journal
from flashmoe.store.loss import losses
from flashmoe.store.manifest import to_json
from flashmoe.store.opening import open_checkpoint
from flashmoe.store.plan import (
    KEEP,
    Item,
    PackOptions,
    PackPlan,
    fingerprint,
    make_plan,
)
from flashmoe.store.sensitivity import formats_for_bits
from flashmoe.store.stream import item_pieces
from flashmoe.strict_json import shown

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
# Work lost at most when a pack is killed; syncing more often costs throughput.
SYNC_BYTES = 128 << 20


class Described(Protocol):
    """What the plan of a pack needs of a checkpoint: no tensor's bytes."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def small_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """Content of those of the named text files that exist."""


class Feed(Protocol):
    """A source that arrives while it is packed."""

    def batches(self, items: Sequence[Item]) -> Iterable[Sequence[Item]]:
        """All of these items, which are missing, in an order that suits the source."""

    def written(self, batch: Sequence[Item]) -> None:
        """A batch is in the journal: its source will not be read for it again."""

    def source_bytes(self, items: Sequence[Item]) -> int:
        """Disk space that the source will take at most while these are packed."""


class _AtOnce:
    """The feed of a checkpoint that is there."""

    def batches(self, items: Sequence[Item]) -> Iterable[Sequence[Item]]:
        return [items]

    def written(self, batch: Sequence[Item]) -> None:
        pass

    def source_bytes(self, items: Sequence[Item]) -> int:
        return 0


def pack_checkpoint(
    source: Path,
    destination: Path,
    options: PackOptions,
    progress: Progress | None = None,
    sync_bytes: int = SYNC_BYTES,
    calibration: Path | None = None,
) -> fmt.Manifest:
    """Packs a checkpoint directory or GGUF file `source` as the new directory `destination`.

    Args:
        progress: called with (data bytes written, data bytes in all), first with those that an
            interrupted run has left.
        sync_bytes: data written between two entries of the journal.
        calibration: file of store/calibration; experts are then rounded by store/calibrated.

    Raises:
        UsageError: the destination exists, is being written, or the options do not fit.
        CheckpointError: the checkpoint is damaged, unsupported or contradicts its config.
        StorageError: reading or writing failed; the same call resumes.
    """
    _expect_free(destination)
    with open_checkpoint(source) as checkpoint:
        return pack_open_checkpoint(
            checkpoint, destination, options, progress, sync_bytes, calibration=calibration
        )


def pack_open_checkpoint(
    checkpoint: Source,
    destination: Path,
    options: PackOptions,
    progress: Progress | None = None,
    sync_bytes: int = SYNC_BYTES,
    feed: Feed | None = None,
    calibration: Path | None = None,
) -> fmt.Manifest:
    """Like pack_checkpoint, from anything that reads like a checkpoint.

    feed: decides the order of work; None: the pack's own. The result does not depend on it.
    """
    _expect_free(destination)
    inputs = None if calibration is None else Calibration(calibration)
    if inputs is not None:
        options = dataclasses.replace(options, calibration=inputs.record)
    if options.experts_bits is not None:
        options = _with_formats(checkpoint, options, inputs)
    plan = plan_pack(checkpoint, options)
    calibrated = None if inputs is None else CalibratedExperts(inputs, plan)
    if feed is None:  # else nothing has arrived that could be looked at
        for loss in losses(checkpoint, plan):
            _log.warning("%s", loss)
    work = destination.with_name(destination.name + ".partial")
    packer = _Packer(checkpoint, plan, work, progress, sync_bytes, feed or _AtOnce(), calibrated)
    manifest = packer.run()
    _publish(work, destination)
    return manifest


def _with_formats(
    checkpoint: Source, options: PackOptions, inputs: Calibration | None
) -> PackOptions:
    """The options with the formats by layer that options.experts_bits stands for."""
    if inputs is None or options.experts_bits is None:
        raise UsageError(
            "a size needs a calibration", where="--experts-bits", expected="--calibration"
        )
    if options.keep_experts != KEEP["auto"] or options.down is not None:
        raise UsageError(
            "a size beside formats of experts", where="--experts-bits", expected="--experts auto"
        )
    plain = dataclasses.replace(options, keep_experts="never", experts_bits=None)
    plan = plan_pack(checkpoint, plain)
    CalibratedExperts(inputs, plan)
    chosen = formats_for_bits(checkpoint, inputs, plan, options.experts_bits, options.experts.group)
    return dataclasses.replace(plain, by_layer=chosen)


def _expect_free(destination: Path) -> None:
    if destination.exists():
        raise UsageError("destination already exists", where=destination)


def plan_pack(checkpoint: Described, options: PackOptions) -> PackPlan:
    """What packing would write; errors as for pack_checkpoint."""
    family = family_name(checkpoint.config)
    module = load_family(family)
    specs = module.weights(module.read_config(checkpoint.config))
    files = {
        name: _small_file(data) for name, data in checkpoint.small_files(fmt.SMALL_FILES).items()
    }
    name = shown(checkpoint.path.resolve().name)
    quantization = read_quantization(checkpoint.config)
    return make_plan(family, name, specs, checkpoint.tensors, files, options, quantization)


def _small_file(data: bytes) -> fmt.SmallFile:
    return fmt.SmallFile(len(data), hashlib.sha256(data).hexdigest())


class _Packer:
    """One run over the plan's items, from where the journal says that the last one stopped."""

    def __init__(
        self,
        checkpoint: Source,
        plan: PackPlan,
        work: Path,
        progress: Progress | None,
        sync_bytes: int,
        feed: Feed,
        calibrated: CalibratedExperts | None = None,
    ) -> None:
        self._feed = feed
        self._checkpoint, self._plan, self._work = checkpoint, plan, work
        self._pack = work / "pack"
        self._calibrated = calibrated
        self._progress, self._sync_bytes = progress, sync_bytes
        self._fds: dict[str, int] = {}
        self._pool = _native.Pool(len(os.sched_getaffinity(0)))
        self._pending: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._pending_bytes = self._done_bytes = 0

    def run(self) -> fmt.Manifest:
        """Writes what is missing -> the complete manifest."""
        with storage_errors("cannot create", self._work):
            self._pack.mkdir(parents=True, exist_ok=True)
        sources = {
            path.name: (file.size, file.mtime_ns) for path, file in self._checkpoint.files.items()
        }
        with ExitStack() as stack:
            journal = Journal(self._work / "journal", fingerprint(self._plan, sources))
            stack.callback(journal.close)
            done = self._open_files(journal, stack)
            self._check_space(done)
            self._write_items(journal, done)
            return self._finish(done)

    def _open_files(self, journal: Journal, stack: ExitStack) -> dict[str, int]:
        """Opens all data files at their full size -> the items that need not be written again."""
        files = self._plan.manifest.data_files()
        for name in files:
            self._fds[name] = self._open(self._pack / name)
            stack.callback(os.close, self._fds[name])
        # Before such a file gets its size: it would look complete to a run after a crash.
        lost = {name for name, (_, size) in files.items() if self._size(name) != size}
        journal.forget({item.key for item in self._plan.items if item.file in lost})
        for name, (header, size) in files.items():
            with storage_errors("cannot write", self._pack / name):
                os.ftruncate(self._fds[name], size)
            write_exactly(self._fds[name], memoryview(header), 0, self._pack / name)
        return dict(journal.done)

    def _open(self, path: Path) -> int:
        with storage_errors("cannot open", path):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _size(self, name: str) -> int:
        return os.fstat(self._fds[name]).st_size

    def _check_space(self, done: Mapping[str, int]) -> None:
        missing = [item for item in self._plan.items if item.key not in done]
        finished = self._plan.data_bytes - sum(item.nbytes for item in missing)
        needed = self._plan.total_bytes - finished + self._feed.source_bytes(missing)
        with storage_errors("cannot query free space", self._work):
            free = shutil.disk_usage(self._work).free
        if free < needed:
            raise StorageError(
                "not enough disk space",
                where=self._work.parent,
                expected=f"{needed} bytes free",
                got=free,
                hint="Free some space and run the same command again",
            )

    def _write_items(self, journal: Journal, done: dict[str, int]) -> None:
        missing = [item for item in self._plan.items if item.key not in done]
        self._report(self._plan.data_bytes - sum(item.nbytes for item in missing))
        for batch in self._feed.batches(missing):
            for item in batch:
                done[item.key] = self._write_item(item)
                self._pending[item.key] = done[item.key]
                self._dirty.add(item.file)
                if self._pending_bytes >= self._sync_bytes:
                    self._flush(journal)
            self._flush(journal)
            self._feed.written(batch)

    def _write_item(self, item: Item) -> int:
        """Writes all bytes of an item -> their CRC-32C."""
        fd, where = self._fds[item.file], self._pack / item.file
        crc, position = 0, item.offset
        for piece in self._pieces(item):
            write_exactly(fd, piece.data, position, where)
            crc = _native.crc32c(piece, crc)
            position += len(piece)
            self._pending_bytes += len(piece)
            self._report(len(piece))
        assert position == item.offset + item.nbytes
        return crc

    def _pieces(self, item: Item) -> Iterator[Bytes]:
        if self._calibrated is not None and self._calibrated.makes(item):
            return self._calibrated.pieces(self._checkpoint, item)
        return item_pieces(self._pool, self._checkpoint, item)

    def _flush(self, journal: Journal) -> None:
        """Syncs the data, then journals it."""
        for name in sorted(self._dirty):
            sync(self._fds[name], self._pack / name)
        journal.append(self._pending)
        self._pending, self._pending_bytes = {}, 0
        self._dirty.clear()

    def _report(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._plan.data_bytes)

    def _finish(self, crcs: Mapping[str, int]) -> fmt.Manifest:
        """Writes the small files and the manifest, syncs everything."""
        manifest = _with_checksums(self._plan.manifest, crcs)
        texts = self._checkpoint.small_files(fmt.SMALL_FILES)
        if {name: _small_file(data) for name, data in texts.items()} != manifest.files:
            raise CheckpointError("files changed while packing", where=self._checkpoint.path)
        texts[fmt.MANIFEST] = to_json(manifest).encode("ascii")
        for name, data in texts.items():
            _write_file(self._pack / name, data)
        for name, fd in self._fds.items():
            sync(fd, self._pack / name)
        sync_directory(self._pack)
        return manifest


def _with_checksums(manifest: fmt.Manifest, crcs: Mapping[str, int]) -> fmt.Manifest:
    tensors = {
        name: dataclasses.replace(tensor, crc32c=crcs[name])
        for name, tensor in manifest.tensors.items()
    }
    count = manifest.experts.num_experts
    layers = tuple(
        dataclasses.replace(
            one, crc32c=tuple(crcs[fmt.expert_key(fmt.stored_by(one), e)] for e in range(count))
        )
        for one in manifest.layers
    )
    return dataclasses.replace(manifest, tensors=tensors, layers=layers)


def _write_file(path: Path, data: bytes) -> None:
    with storage_errors("cannot write", path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(work: Path, destination: Path) -> None:
    """Makes the finished pack appear under its name, then removes the work directory."""
    with storage_errors("cannot rename the finished pack", destination):
        os.rename(work / "pack", destination)
    sync_directory(destination.parent)
    with storage_errors("cannot remove", work):
        (work / "journal").unlink()
        work.rmdir()
