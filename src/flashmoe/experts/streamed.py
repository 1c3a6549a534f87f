"""Routed experts out of the cache and off the disk: computed as they arrive, summed in order."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType

import numpy as np

from flashmoe.experts.addresses import Addresses
from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.prefetch import Prefetch, PrefetchControl
from flashmoe.experts.ticket import Ticket
from flashmoe.layers.moe import Ahead
from flashmoe.ops.base import ExpertCall, ExpertShape, Floats, Ints, Ops, Residents


@dataclass(frozen=True)
class ExpertGroups:
    """Routing turned round: for each needed expert, the tokens that want it.

    experts: ids, ascending. Expert i serves entries offsets[i]..offsets[i + 1] of `tokens` (row of
    x) and `dests` (token * K + rank: where its result goes).
    """

    experts: list[int]
    offsets: Ints
    tokens: Ints
    dests: Ints

    @staticmethod
    def of(ids: Ints) -> ExpertGroups:
        """Group routed ids [T, K]."""
        flat = ids.reshape(-1)
        order = np.argsort(flat, kind="stable").astype(np.int32)
        ranked = flat[order]
        starts = np.flatnonzero(np.diff(ranked, prepend=-1))
        offsets = np.append(starts, len(flat)).astype(np.int32)
        tokens = order // np.int32(ids.shape[1])
        return ExpertGroups(ranked[starts].tolist(), offsets, tokens, order)

    def select(self, chosen: list[int]) -> tuple[Ints, Ints, Ints]:
        """offsets, tokens and dests of the chosen experts only, in the order given."""
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        offsets = np.cumsum([0, *(span.stop - span.start for span in spans)], dtype=np.int32)
        tokens = np.concatenate([self.tokens[span] for span in spans])
        dests = np.concatenate([self.dests[span] for span in spans])
        return offsets, tokens, dests


class OneTokenGroups:
    """ExpertGroups of a single token [1, K], without array arithmetic: experts in routing order.

    Between streamed weights the interpreter's code is out of the processor's caches, and array
    arithmetic on a few numbers costs ten times what it costs alone.
    """

    def __init__(self, ids: Ints) -> None:
        self.experts: list[int] = ids[0].tolist()

    def select(self, chosen: list[int]) -> tuple[Ints, Ints, Ints]:
        """As ExpertGroups.select: one entry per expert."""
        offsets, tokens = _one_entry_each(len(chosen))
        return offsets, tokens, np.array(chosen, dtype=np.int32)


@functools.lru_cache(maxsize=64)
def _one_entry_each(experts: int) -> tuple[Ints, Ints]:
    """offsets and tokens where each of so many experts computes the one token."""
    return np.arange(experts + 1, dtype=np.int32), np.zeros(experts, dtype=np.int32)


def by_demand(ids: Ints) -> list[int]:
    """Distinct experts of routed ids [T, K], those that most tokens want first; for one token in
    routing order, the likeliest first."""
    if len(ids) == 1:
        likeliest: list[int] = ids[0].tolist()
        return likeliest
    experts, counts = np.unique(ids, return_counts=True)
    ranked: list[int] = experts[np.argsort(-counts, kind="stable")].tolist()
    return ranked


class Reading:
    """Reads under way for one layer; leaving the context gives up what was not finished."""

    def __init__(
        self, groups: ExpertGroups | OneTokenGroups, reads: Ticket, shape: ExpertShape
    ) -> None:
        self.groups = groups
        self.reads = reads
        self.shape = shape

    def __enter__(self) -> Reading:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.reads.close()


class Ready:
    """One token's experts of a layer, all resident. A single object serves all layers: a decode
    step that misses nothing leaves no garbage."""

    def __init__(self, shape: ExpertShape) -> None:
        self.addresses: Addresses = np.empty(0, dtype=np.uint64)
        self.shape = shape

    def __enter__(self) -> Ready:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


RoutedTicket = Reading | Ready


class StreamedExperts:
    """flashmoe.layers.moe.RoutedExperts on an ExpertCache.

    shapes: of the experts of each layer.
    residents: where a backend may look a token's experts up by itself; None where guesses are made,
    which `begin` has to settle. wants_ahead: whether `begin` has a use for a guess of what the next
    layer will want.
    """

    def __init__(
        self,
        cache: ExpertCache,
        shapes: Mapping[int, ExpertShape],
        ops: Ops,
        prefetch: Prefetch = "off",
    ) -> None:
        self.cache = cache
        self._shapes = shapes
        self._ops = ops
        self._ready = Ready(next(iter(shapes.values())))
        mode: Prefetch = prefetch if cache.staging else "off"
        self._control = PrefetchControl(mode)
        self.residents = Residents(cache.table, shapes) if mode == "off" else None
        self.wants_ahead = self._control.on
        self._pass: _Pass | None = None

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> RoutedTicket:
        """Plan the layer and send its reads on their way.

        Args:
            ids: int32 [T, K].
            ahead: the next layer of experts, and the ids [T, K] that it is likely to want.
        """
        if self._pass is None:
            self._begin_pass(len(ids))
        ticket: RoutedTicket = self._ready
        found = self.cache.find(layer, ids) if len(ids) == 1 else None
        if found is None:
            ticket = self._read(layer, ids)
        else:
            self._ready.addresses, self._ready.shape = found, self._shapes[layer]
        if ahead is not None:
            self.cache.guess(ahead[0], by_demand(ahead[1]))
        return ticket

    def finish(self, ticket: RoutedTicket, x: Floats, weights: Floats, out: Floats) -> None:
        """Compute hits, then misses as they land; then out [T, H] += the weighted sum."""
        if isinstance(ticket, Ready):
            self._ops.add_token_experts(out, x, ticket.shape, ticket.addresses, weights)
            return
        call = self._ops.experts(x, ticket.shape, weights.size)
        self._finish_reading(ticket, call)
        self._ops.combine(call.rows, weights, out)

    def end_step(self) -> None:
        """The forward pass is over."""
        self.cache.end_step()
        if self._pass is not None and self._pass.tokens == 1:
            seconds = perf_counter() - self._pass.start
            self._control.book(seconds, self.cache.stats.misses - self._pass.misses)
        self._pass = None
        self.wants_ahead = self._control.on

    def _begin_pass(self, tokens: int) -> None:
        self._pass = _Pass(tokens, perf_counter(), self.cache.stats.misses)
        if tokens > 1:
            self.wants_ahead = self._control.on_for_prompt

    def _read(self, layer: int, ids: Ints) -> Reading:
        groups = OneTokenGroups(ids) if len(ids) == 1 else ExpertGroups.of(ids)
        return Reading(groups, self.cache.begin(layer, groups.experts), self._shapes[layer])

    def _finish_reading(self, ticket: Reading, call: ExpertCall) -> None:
        waited = self.cache.stats.wait_seconds
        for batch in ticket.reads.batches():
            addresses: Addresses = np.array([a for _, a in batch], dtype=np.uint64)
            call.run(addresses, *ticket.groups.select([i for i, _ in batch]))
        self._ops.clock.add(self.cache.stats.wait_seconds - waited, "disk_wait")


@dataclass(frozen=True)
class _Pass:
    """tokens of a forward pass; time and misses when it reached the first layer of experts."""

    tokens: int
    start: float
    misses: int
