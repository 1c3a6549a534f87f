"""Records what routers say to a file that only grows (docs/traces.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from flashmoe import __version__
from flashmoe.errors import StorageError, UsageError
from flashmoe.experts import trace_format as fmt
from flashmoe.experts.cache import ExpertCache
from flashmoe.files import storage_errors, write_exactly
from flashmoe.layers.state import Batch
from flashmoe.layers.traced import scores_of
from flashmoe.ops.base import Floats, Ints
from flashmoe.ops.clock import PhaseClock
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
        self.path, self._end, self._size = path, 0, 0
        self.failures = 0  # flushes that lost what waited
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
            write_exactly(self._fd, memoryview(data), self._end, self.path)
            written = True
        finally:
            if not written:
                self.failures += 1
                with storage_errors("cannot take back a part of a record", self.path):
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

    Passes nest (a decode step between two layers of a prompt): a record names its pass. Logits wait
    until the pass is over: between streamed weights the interpreter is slow (experts/streamed.py).
    sigmoid: what makes scores of them. clock: where the time of that is booked.
    """

    def __init__(
        self,
        file: TraceFile,
        counters: Counters,
        sigmoid: bool = False,
        clock: PhaseClock | None = None,
    ) -> None:
        self._file, self._counters, self._sigmoid = file, counters, sigmoid
        self._clock = clock or PhaseClock()
        self._waiting: list[tuple[int, int, Ints, Floats]] = []  # pass, layer, ids, logits
        self._bytes = 0
        self._passes = 0
        self._now, self._failures = -1, 0

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """While the body runs, the batch passes through layers."""
        spans = tuple((part.start, part.end - part.begin) for part in batch.segments)
        self._encode()
        self._file.add(fmt.pass_record(fmt.PassFacts(self._passes, *self._counters(), spans)))
        outer, self._now = (self._now, self._failures), self._passes
        self._failures = self._file.failures
        self._passes += 1
        try:
            yield
        finally:
            (self._now, self._failures), start = outer, perf_counter()
            self._encode()
            self._file.flush()
            self._clock.add(perf_counter() - start, "trace")

    def note(self, layer: int, ids: Ints, logits: Iterable[Floats]) -> None:
        """A layer's router has chosen ids [T, K]; logits: [n, E] of at most 64 tokens each."""
        assert self._now >= 0, "outside of a pass"
        if self._failures != self._file.failures:  # in a pass within this one
            raise StorageError("the beginning of this pass was not recorded", where=self._file.path)
        begin = 0
        for piece in logits:
            rows = ids[begin : begin + len(piece)].copy()
            self._waiting.append((self._now, layer, rows, piece.copy()))
            begin += len(piece)
            self._bytes += piece.nbytes
            if self._bytes >= _BUFFER_BYTES:
                self._encode()

    def _encode(self) -> None:
        """Make records of what waits."""
        if not self._waiting:
            return
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        scores = scores_of(np.concatenate([entry[3] for entry in waiting]), self._sigmoid)
        begin = 0
        for number, layer, ids, _ in waiting:
            rows = scores[begin : begin + len(ids)]
            self._file.add(fmt.rows_record(number, layer, fmt.chosen_ids(ids), rows))
            begin += len(ids)

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
    clock: PhaseClock,
) -> TraceRecorder:
    """A new trace of a model. routers: by layer. clock: of the engine. Raises UsageError,
    StorageError."""
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
    stats, sigmoid = cache.stats, header.router.kind == "sigmoid"
    counters = lambda: (cache.slots, stats.hits, stats.misses)  # noqa: E731
    return TraceRecorder(TraceFile(path, header), counters, sigmoid, clock)


def _router_of(routers: list[RouterWeights]) -> fmt.TraceRouter:
    first = routers[0].sigmoid
    if first is None:
        return fmt.TraceRouter("softmax")
    rows = [tuple(r.sigmoid.correction.tolist()) for r in routers if r.sigmoid is not None]
    return fmt.TraceRouter("sigmoid", first.groups, first.chosen_groups, tuple(rows))
