"""Routed experts out of the cache and off the disk: computed as they arrive, summed in order."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.ticket import Ticket
from flashmoe.layers.moe import Ahead
from flashmoe.ops.base import ExpertShape, Floats, Ints, Ops


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
    """ExpertGroups of a single token [1, K], without array arithmetic.

    Between streamed weights the interpreter's code is out of the processor's caches, and array
    arithmetic on a few numbers costs ten times what it costs alone.
    """

    def __init__(self, ids: Ints) -> None:
        ranked = sorted(zip(ids[0].tolist(), range(ids.shape[1]), strict=True))
        self.experts = [expert for expert, _ in ranked]
        self.ranks = [rank for _, rank in ranked]

    def select(self, chosen: list[int]) -> tuple[Ints, Ints, Ints]:
        """As ExpertGroups.select: one entry per expert."""
        offsets, tokens = _one_entry_each(len(chosen))
        dests: Ints = np.array([self.ranks[i] for i in chosen], dtype=np.int32)
        return offsets, tokens, dests


@functools.lru_cache(maxsize=64)
def _one_entry_each(experts: int) -> tuple[Ints, Ints]:
    return np.arange(experts + 1, dtype=np.int32), np.zeros(experts, dtype=np.int32)


class RoutedTicket:
    """Reads under way for one layer; leaving the context gives up what was not finished."""

    def __init__(self, groups: ExpertGroups | OneTokenGroups, reads: Ticket) -> None:
        self.groups = groups
        self.reads = reads

    def __enter__(self) -> RoutedTicket:
        self.reads.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.reads.__exit__(kind, error, trace)


class StreamedExperts:
    """flashmoe.layers.moe.RoutedExperts on an ExpertCache."""

    wants_ahead = False

    def __init__(self, cache: ExpertCache, shape: ExpertShape, ops: Ops) -> None:
        self.cache = cache
        self._shape = shape
        self._ops = ops

    def begin(self, layer: int, ids: Ints, ahead: Ahead | None = None) -> RoutedTicket:
        """Plan the layer and send its reads on their way; ids int32 [T, K]."""
        groups = OneTokenGroups(ids) if len(ids) == 1 else ExpertGroups.of(ids)
        return RoutedTicket(groups, self.cache.begin(layer, groups.experts))

    def finish(self, ticket: RoutedTicket, x: Floats, weights: Floats, out: Floats) -> None:
        """Compute hits, then misses as they land; then out [T, H] += the weighted sum."""
        waited = self.cache.stats.wait_seconds
        batches = ticket.reads.batches()
        first = next(batches)
        if isinstance(ticket.groups, OneTokenGroups) and len(first) == weights.size:
            addresses = [address for _, address in first]
            ranks = [ticket.groups.ranks[i] for i, _ in first]
            self._ops.add_token_experts(out, x, self._shape, addresses, ranks, weights)
        else:
            call = self._ops.experts(x, self._shape, weights.size)
            for batch in itertools.chain([first], batches):
                at: NDArray[np.uint64] = np.array([a for _, a in batch], dtype=np.uint64)
                call.run(at, *ticket.groups.select([i for i, _ in batch]))
            self._ops.combine(call.rows, weights, out)
        self._ops.clock.add(self.cache.stats.wait_seconds - waited, "disk_wait")

    def end_step(self) -> None:
        """The forward pass is over."""
        self.cache.end_step()
