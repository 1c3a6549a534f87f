"""Distances between distributions, their confidence, and what counts as valid under a schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.evals import divergence
from flashmoe.evals.divergence import Divergence, Reference
from flashmoe.evals.json_schema import allowed
from flashmoe.evals.paired import paired_difference
from flashmoe.evals.perplexity import log_softmax
from flashmoe.evals.windows import Windows
from tests.support.tolerances import KL_KEPT


def logits(seed: int, tokens: int = 40, vocab: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (tokens, vocab)).astype(np.float32)


def compared(path: Path, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    reference, found = Reference(path, *first.shape), Divergence()
    for begin in range(0, len(first), 16):
        reference.put(begin, first[begin : begin + 16])
    for begin in range(0, len(first), 10):
        reference.compare(begin, second[begin : begin + 10], found)
    return found.figures()


def test_kl_is_that_of_the_definition(tmp_path: Path) -> None:
    p, q = (log_softmax(logits(seed)) for seed in (1, 2))
    expected = (np.exp(p) * (p - q)).sum(axis=1)
    got = compared(tmp_path, logits(1), logits(2))
    assert got["kl_mean"] == pytest.approx(expected.mean(), rel=KL_KEPT)
    assert got["kl_p999"] == pytest.approx(np.quantile(expected, 0.999), rel=KL_KEPT)
    assert got["top1"] == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert sum(part["tokens"] for part in got["by_confidence"]) == 40


def test_of_few_kept_outcomes_it_is_a_lower_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(tmp_path, logits(1), logits(2))
    monkeypatch.setattr(divergence, "_LARGEST_FILE", 0)
    monkeypatch.setattr(divergence, "_KEPT_OF_MANY", 20)
    part = compared(tmp_path, logits(1), logits(2))
    assert 0.8 * whole["kl_mean"] < part["kl_mean"] <= whole["kl_mean"]
    assert part["top1"] == whole["top1"]


def test_a_model_is_no_distance_from_itself(tmp_path: Path) -> None:
    got = compared(tmp_path, logits(1), logits(1))
    assert got["kl_mean"] < KL_KEPT
    assert got["top1"] == 1


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-2, 2))
def test_a_constant_difference_has_no_spread(first: list[float], shift: float) -> None:
    got = paired_difference(first, [x + shift for x in first], [1.0] * len(first))
    assert got["low"] == pytest.approx(shift, abs=1e-9)
    assert got["high"] == pytest.approx(shift, abs=1e-9)


def test_the_interval_holds_the_mean_and_narrows_with_more_units() -> None:
    draws = np.random.default_rng(0).normal(0.1, 1.0, 400)
    few, many = (paired_difference([0.0] * n, draws[:n], [1.0] * n) for n in (20, 400))
    for got in (few, many):
        assert got["low"] < got["mean"] < got["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]


@pytest.mark.parametrize(("stride", "scored"), [(8, [7, 7, 7]), (2, [7, 2, 2])])
def test_overlapping_windows_score_each_token_once(stride: int, scored: list[int]) -> None:
    windows = Windows(np.zeros((3, 8), dtype=np.int32), stride)
    assert [8 - windows.first_target(n) for n in range(3)] == scored
    assert windows.scored == sum(scored)


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ({"n": 1}, True),
        ({"n": 1.0, "unit": "C", "tags": ["a"]}, True),
        ({"n": 1.5}, False),
        ({"n": True}, False),
        ({"unit": "C"}, False),
        ({"n": 1, "unit": "K"}, False),
        ({"n": 1, "tags": [2]}, False),
        ({"n": 1, "more": 2}, False),
        ([], False),
        (None, False),
    ],
)
def test_schemas(value: object, valid: bool) -> None:
    assert allowed(value, SCHEMA) is valid
