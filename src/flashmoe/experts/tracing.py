"""Records what routers say to a file that only grows (docs/traces.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashmoe import __version__
from flashmoe.errors import UsageError
from flashmoe.experts import trace_format as fmt
from flashmoe.experts.cache import ExpertCache
from flashmoe.files import storage_errors, write_exactly
from flashmoe.layers.state import Batch
from flashmoe.ops.base import Floats, Ints
from flashmoe.ops.parts import RouterWeights
from flashmoe.store.model import StoredModel

_BUFFER_BYTES: Final = 1 << 20

_CLOSED: Final = -2

Counters = Callable[[], tuple[int, int, int]]
"""-> slots of the cache now, hits and misses since the model was opened."""


class TraceFile:
    """A new file of records; complete ones reach the system at every `flush`.

    Raises UsageError where there is a file of that name, StorageError where it cannot be written;
    what could not be written whole is taken back, and the next records go in its place.
    """

    def __init__(self, path: Path, header: fmt.TraceHeader) -> None:
        self._path, self._end, self._size = path, 0, 0
        self._waiting: list[bytes] = []
        if path.exists():
            hint = "Give another name, or remove it"
            raise UsageError("there is a file of this name", where=path, hint=hint)
        with storage_errors("cannot create the trace", path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.add(header.encode())
        self.flush()

    def add(self, record: bytes) -> None:
        """Append a record, now or at the next flush."""
        self._waiting.append(record)
        self._size += len(record)
        if self._size >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the system: what follows cannot lose it, kill -9 included."""
        data = b"".join(self._waiting)
        self._waiting, self._size = [], 0
        written = False
        try:
            write_exactly(self._fd, memoryview(data), self._end, self._path)
            written = True
        finally:
            if not written:
                with storage_errors("cannot take back a part of a record", self._path):
                    os.ftruncate(self._fd, self._end)
        self._end += len(data)

    def close(self) -> None:
        """Flush and close. Does nothing the second time."""
        if self._fd < 0:
            return
        fd = self._fd
        try:
            self.flush()
        finally:
            self._fd = -1
            os.close(fd)


class TraceRecorder:
    """Passes and what routers say in them, to a TraceFile.

    Passes nest (a decode step between two layers of a prompt): a record names its pass.
    """

    def __init__(self, file: TraceFile, counters: Counters) -> None:
        self._file, self._counters = file, counters
        self._passes = 0
        self._now = -1

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """While the body runs, the batch passes through layers."""
        outer, self._now = self._now, self._passes
        self._passes += 1
        spans = tuple((part.start, part.end - part.begin) for part in batch.segments)
        self._file.add(fmt.pass_record(fmt.PassFacts(self._now, *self._counters(), spans)))
        try:
            yield
        finally:
            self._now = outer
            self._file.flush()

    def note(self, layer: int, ids: Ints, scores: Iterable[Floats]) -> None:
        """A layer's router has chosen ids [T, K]; scores: [n, E] of at most 64 tokens each."""
        assert self._now >= 0, "outside of a pass"
        chosen, begin = fmt.chosen_ids(ids), 0
        for piece in scores:
            rows = chosen[begin : begin + len(piece)]
            self._file.add(fmt.rows_record(self._now, layer, rows, piece))
            begin += len(piece)

    def close(self) -> None:
        """The last record. Does nothing the second time."""
        _, hits, misses = self._counters()
        if self._now != _CLOSED:
            self._now = _CLOSED
            self._file.add(fmt.done_record(hits, misses))
            self._file.close()


@dataclass(frozen=True)
class RunFacts:
    """What a trace says of a run: the model's own K, lossy rules in force, sequences at once."""

    native_experts_per_token: int
    lossy: str
    parallel: int


def start_trace(
    path: Path,
    model: StoredModel,
    routers: Mapping[int, RouterWeights],
    cache: ExpertCache,
    run: RunFacts,
) -> TraceRecorder:
    """A new trace of a model. routers: by layer. Raises UsageError, StorageError."""
    header = fmt.TraceHeader(
        flashmoe=__version__,
        model=model.path.name,
        family=model.manifest.family,
        identity=model.identity,
        num_experts=model.num_experts,
        num_experts_per_tok=run.native_experts_per_token,
        layers=tuple(routers),
        expert_bytes=tuple(model.extent(layer, 0).nbytes for layer in routers),
        router=_router_of(list(routers.values())),
        lossy=run.lossy,
        cache_slots=cache.slots,
        parallel=run.parallel,
    )
    stats = cache.stats
    return TraceRecorder(TraceFile(path, header), lambda: (cache.slots, stats.hits, stats.misses))


def _router_of(routers: list[RouterWeights]) -> fmt.TraceRouter:
    first = routers[0].sigmoid
    if first is None:
        return fmt.TraceRouter("softmax")
    rows = [tuple(r.sigmoid.correction.tolist()) for r in routers if r.sigmoid is not None]
    return fmt.TraceRouter("sigmoid", first.groups, first.chosen_groups, tuple(rows))
