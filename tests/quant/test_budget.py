"""Choices under a budget: against all there are, and the refusal of what cannot be met."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import UsageError
from flashmoe.quant.budget import allocate

# Integers as losses: sums have no rounding to compare.
tables = st.integers(1, 4).flatmap(
    lambda choices: st.lists(
        st.lists(
            st.tuples(st.integers(1, 12), st.integers(0, 50)), min_size=choices, max_size=choices
        ),
        min_size=1,
        max_size=4,
    )
)


@given(tables, st.integers(1, 50), st.sampled_from([1, 4096]))
def test_no_other_choice_in_the_budget_loses_less(
    table: list[list[tuple[int, int]]], budget: int, unit: int
) -> None:
    costs = np.array([[cost * unit for cost, _ in part] for part in table])
    losses = np.array([[float(loss) for _, loss in part] for part in table])
    rows = np.arange(len(costs))
    sums = [
        (losses[rows, chosen].sum(), costs[rows, chosen].sum())
        for chosen in itertools.product(range(costs.shape[1]), repeat=len(costs))
        if costs[rows, chosen].sum() <= budget * unit
    ]
    if not sums:
        with pytest.raises(UsageError, match="budget is too small"):
            allocate(costs, losses, budget * unit)
        return
    chosen = allocate(costs, losses, budget * unit)
    assert (losses[rows, chosen].sum(), costs[rows, chosen].sum()) == min(sums)


def test_a_budget_for_all_takes_the_best_of_each() -> None:
    costs, losses = np.array([[1, 2, 9]] * 3), np.array([[5.0, 2.0, 1.0]] * 3)
    assert allocate(costs, losses, 10**12).tolist() == [2, 2, 2]
    assert sorted(allocate(costs, losses, 6).tolist()) == [1, 1, 1]
