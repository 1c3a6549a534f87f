"""The curve of hit rates beside what was replayed and measured (docs/plan.md)."""

from __future__ import annotations

import pytest

from flashmoe.bench.traces import Trace, Visit
from flashmoe.forecast.hits import (
    even_hit_rate,
    expected_hits,
    hit_rate,
    replayed_hit_rate,
    steepness,
)
from tests.support.tolerances import HIT_RATE_FIT, HIT_RATE_OF_ANOTHER_MODEL

# Share of the experts in the cache, and hits: docs/experiments/cache-policy.md, the engine's order.
OLMOE = {0.05: 0.213, 0.1: 0.339, 0.2: 0.506, 0.3: 0.633, 0.4: 0.727, 0.5: 0.813, 0.75: 0.940}
QWEN3 = {0.05: 0.364, 0.1: 0.551, 0.2: 0.774, 0.3: 0.886, 0.4: 0.942, 0.5: 0.965, 0.75: 0.971}
# The demo model on 512 tokens of WikiText after 128, measured in the engine; in no fit.
DEMO = {0.068: 0.198, 0.1: 0.296, 0.148: 0.430, 0.2: 0.547, 0.25: 0.638, 0.4: 0.820, 0.75: 0.987}


@pytest.mark.parametrize(("curve", "chosen"), [(OLMOE, 8 / 64), (QWEN3, 6 / 128)])
def test_the_traces_it_was_fitted_to(curve: dict[float, float], chosen: float) -> None:
    for share, measured in curve.items():
        assert hit_rate(share, chosen) == pytest.approx(measured, abs=HIT_RATE_FIT)


def test_a_model_that_it_was_not_fitted_to() -> None:
    for share, measured in DEMO.items():
        assert hit_rate(share, 8 / 64) == pytest.approx(measured, abs=HIT_RATE_OF_ANOTHER_MODEL)


def test_its_ends() -> None:
    assert (hit_rate(0.0, 0.1), hit_rate(1.0, 0.1), hit_rate(1.5, 0.1)) == (0.0, 1.0, 1.0)
    assert steepness(0.5) == steepness(1 / 8) < steepness(1 / 16) < steepness(6 / 128)
    assert steepness(0.01) == steepness(6 / 128)


def test_what_is_known_of_a_model_decides() -> None:
    assert expected_hits("synthetic-x", 0.1, None).rate is even_hit_rate
    found = expected_hits("Qwen3-30B-A3B", 0.1, None)
    assert (found.origin, found.rate(0.3)) == ("estimated", hit_rate(0.3, 0.1))


def trace(*experts: int) -> Trace:
    """A layer of 4 experts, one of which each token asks for."""
    visits = tuple(Visit(0, (expert,), decode=True) for expert in experts)
    return Trace("mine.jsonl", visits, 4, {}, len(visits))


def test_a_trace_is_replayed() -> None:
    found = expected_hits("synthetic-x", 0.1, trace(0, 1, 0, 1, 2, 3))
    assert (found.origin, found.note) == ("replayed", "mine.jsonl")
    assert found.rate(0.5) == pytest.approx(2 / 6)
    assert replayed_hit_rate(trace(0, 1), 1.0) == 1.0
    assert replayed_hit_rate(trace(0, 0, 0, 0), 0.0) == 0.75  # at least one visit's fit
