"""Formats of many parts under one budget of bytes: the least loss, exactly.

A knapsack with one choice per part (Kellerer, Pferschy & Pisinger 2004, chapter 11), by dynamic
programming over the bytes in units of their greatest common divisor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import UsageError

Costs = NDArray[np.int64]
Losses = NDArray[np.float64]


def allocate(costs: Costs, losses: Losses, budget: int) -> NDArray[np.intp]:
    """The choice of each part with the least sum of losses whose costs stay in the budget.

    Args:
        costs: [parts, choices], bytes.
        losses: [parts, choices], finite; what they sum up to is minimised.

    Of equal sums one of the fewest bytes. Raises UsageError where even the smallest do not fit.
    """
    floor = costs.min(axis=1)
    if int(floor.sum()) > budget:
        raise UsageError(
            "the budget is too small", expected=f"at least {floor.sum()} bytes", got=budget
        )
    above = costs - floor[:, None]
    unit = max(1, int(np.gcd.reduce(above, axis=None)))
    steps = above // unit
    room = min(int(steps.max(axis=1).sum()), (budget - int(floor.sum())) // unit)
    best, taken = _table(steps, losses, room)
    return _walk_back(steps, taken, int(best.argmin()))


def _table(steps: Costs, losses: Losses, room: int) -> tuple[Losses, NDArray[np.uint8]]:
    """Least loss of all parts by units used exactly [room + 1]; what each part took there."""
    best = np.full(room + 1, np.inf)
    best[0] = 0
    taken = np.zeros((len(steps), room + 1), np.uint8)
    for part, (sizes, loss) in enumerate(zip(steps, losses, strict=True)):
        before, best = best, np.full(room + 1, np.inf)
        for choice, size in enumerate(sizes):
            if size <= room:
                tried = before[: room + 1 - size] + loss[choice]
                better = tried < best[size:]
                best[size:][better] = tried[better]
                taken[part, size:][better] = choice
    return best, taken


def _walk_back(steps: Costs, taken: NDArray[np.uint8], used: int) -> NDArray[np.intp]:
    chosen = np.zeros(len(steps), np.intp)
    for part in range(len(steps) - 1, -1, -1):
        chosen[part] = taken[part, used]
        used -= int(steps[part, chosen[part]])
    return chosen
