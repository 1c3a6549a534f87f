"""Routed experts out of the cache and off the disk: computed as they arrive, summed in order."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.ticket import Ticket
from flashmoe.ops.base import ExpertShape, Floats, Ints, Ops


@dataclass(frozen=True)
class ExpertGroups:
    """Routing turned round: for each needed expert, the tokens that want it.

    experts: ids, ascending. Expert i serves entries offsets[i]..offsets[i + 1] of `tokens` (row of
    x) and `dests` (token * K + rank: where its result goes).
    """

    experts: Ints
    offsets: Ints
    tokens: Ints
    dests: Ints

    @staticmethod
    def of(ids: Ints) -> ExpertGroups:
        """Group routed ids [T, K]; the ids of one token are distinct."""
        if len(ids) == 1:
            return ExpertGroups._of_one_token(ids[0])
        flat = ids.reshape(-1)
        order = np.argsort(flat, kind="stable").astype(np.int32)
        ranked = flat[order]
        starts = np.flatnonzero(np.diff(ranked, prepend=-1))
        offsets = np.append(starts, len(flat)).astype(np.int32)
        return ExpertGroups(ranked[starts], offsets, order // np.int32(ids.shape[1]), order)

    @staticmethod
    def _of_one_token(ids: Ints) -> ExpertGroups:
        order = ids.argsort()
        each = np.arange(len(ids) + 1, dtype=np.int32)
        return ExpertGroups(ids[order], each, np.zeros_like(ids), order.astype(np.int32))

    def select(self, chosen: list[int]) -> tuple[Ints, Ints, Ints]:
        """offsets, tokens and dests of the chosen experts only, in the order given."""
        if len(chosen) == len(self.experts) and chosen == sorted(chosen):
            return self.offsets, self.tokens, self.dests
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        offsets = np.cumsum([0, *(span.stop - span.start for span in spans)], dtype=np.int32)
        tokens = np.concatenate([self.tokens[span] for span in spans])
        dests = np.concatenate([self.dests[span] for span in spans])
        return offsets, tokens, dests


class RoutedTicket:
    """Reads under way for one layer; leaving the context gives up what was not finished."""

    def __init__(self, groups: ExpertGroups, reads: Ticket) -> None:
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

    def __init__(self, cache: ExpertCache, shape: ExpertShape, ops: Ops) -> None:
        self.cache = cache
        self._shape = shape
        self._ops = ops

    def begin(self, layer: int, ids: Ints) -> RoutedTicket:
        """Plan the layer and send its reads on their way; ids int32 [T, K]."""
        groups = ExpertGroups.of(ids)
        return RoutedTicket(groups, self.cache.begin(layer, groups.experts.tolist()))

    def finish(self, ticket: RoutedTicket, x: Floats, weights: Floats, out: Floats) -> None:
        """Compute hits, then misses as they land; then out [T, H] += the weighted sum."""
        call = self._ops.experts(x, self._shape, weights.size)
        waited = self.cache.stats.wait_seconds
        for batch in ticket.reads.batches():
            addresses: NDArray[np.uint64] = np.array([a for _, a in batch], dtype=np.uint64)
            call.run(addresses, *ticket.groups.select([i for i, _ in batch]))
        self._ops.clock.add(self.cache.stats.wait_seconds - waited, "disk_wait")
        self._ops.combine(call.rows, weights, out)

    def end_step(self) -> None:
        """The forward pass is over."""
        self.cache.end_step()
