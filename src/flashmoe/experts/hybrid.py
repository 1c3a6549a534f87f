"""A share of the experts in RAM computed by the CPU while the bus brings the others to the card.

The CPU rounds differently (inputs to int8), and which experts it takes depends on what is where and
on measured rates: results differ from those of the card alone by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from flashmoe.experts.tiers import HostRates
from flashmoe.ops.base import ExpertShape, Floats
from flashmoe.ops.cpu import CpuOps

# Experts per call, and calls, by which the CPU's rate is measured: other records each time, so that
# they come out of memory.
_PROBE_EXPERTS = 8
_PROBE_CALLS = 12


class HostShare:
    """The CPU's part of a token's experts. Arrays pass through pinned memory.

    shape: of the records. layers, k: how many layers have experts, and experts per token.
    """

    def __init__(
        self, shape: ExpertShape, layers: int, k: int, device: torch.device, ops: CpuOps
    ) -> None:
        self._shape, self._ops = shape, ops
        pin, hidden = device.type == "cuda", shape.hidden_size
        self._x = torch.zeros((1, hidden), dtype=torch.float32, pin_memory=pin)
        self._weights = torch.zeros((1, k), dtype=torch.float32, pin_memory=pin)
        self._sums = torch.zeros((layers, hidden), dtype=torch.float32, pin_memory=pin)
        self._sum = torch.zeros(shape.hidden_size, dtype=torch.float32, device=device)
        # Read as NumPy: items of a tensor cost a microsecond each.
        self._values = self._x.numpy(), self._weights.numpy(), self._sums.numpy()
        self._written = [False] * layers
        self.rates = HostRates(0.0, 0.0, 0.0)
        self.seconds = 0.0  # that the CPU has computed for

    def take(self, x: torch.Tensor, weights: torch.Tensor) -> None:
        """Start x [1, H] and weights [1, K] of the token on their way to the host."""
        self._x.copy_(x, non_blocking=True)
        self._weights.copy_(weights, non_blocking=True)

    def forget(self, row: int) -> None:
        """Nothing has been computed for this layer: there is nothing to add."""
        if self._written[row]:
            self._values[2][row] = 0
            self._written[row] = False

    def compute(self, row: int, ids: Sequence[int], addresses: Mapping[int, int]) -> None:
        """The weighted sum of the experts whose records are at `addresses`, of those the token
        wants, ids [K] in routing order. What was taken must have arrived."""
        begin = perf_counter()
        x, weights, sums = self._values
        ranks = [rank for rank, expert in enumerate(ids) if expert in addresses]
        records = np.array([addresses[ids[rank]] for rank in ranks], dtype=np.uint64)
        self._add(sums[row : row + 1], x, records, np.ascontiguousarray(weights[:, ranks]))
        self._written[row] = True
        self.seconds += perf_counter() - begin

    def add(self, row: int, out: torch.Tensor) -> None:
        """out [1, H] += what was computed, or nothing."""
        self._sum.copy_(self._sums[row], non_blocking=True)
        out += self._sum

    def measure(self, seconds_per_copy: float, addresses: Sequence[int]) -> None:
        """Find the rates. addresses: of readable records, whatever is in them."""
        many = min(_PROBE_EXPERTS, len(addresses))
        one, all_ = self._probe(addresses, 1), self._probe(addresses, many)
        each = max(0.0, all_ - one) / max(1, many - 1) or one
        self.rates = HostRates(seconds_per_copy, each, max(0.0, one - each))

    def _probe(self, addresses: Sequence[int], experts: int) -> float:
        """Median seconds of a call over so many experts."""
        x, out = np.ones_like(self._values[0]), np.zeros_like(self._values[0])
        weights, taken = np.zeros((1, experts), dtype=np.float32), []
        for call in range(_PROBE_CALLS):
            at = [addresses[(call * experts + i) % len(addresses)] for i in range(experts)]
            begin = perf_counter()
            self._add(out, x, np.array(at, dtype=np.uint64), weights)
            taken.append(perf_counter() - begin)
        return float(np.median(taken))

    def _add(self, out: Floats, x: Floats, records: NDArray[np.uint64], weights: Floats) -> None:
        out[:] = 0
        self._ops.begin_pass()
        self._ops.add_token_experts(out, x, self._shape, records, weights)
