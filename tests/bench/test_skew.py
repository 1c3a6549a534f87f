"""Skewed routing: curves, the biases that give them, and files that say them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.bench.skew import logit_biases, parse_skew, router_column, share_out, top_shares
from flashmoe.errors import UsageError
from tests.support.tolerances import ROUTING_SHARE


@settings(deadline=None, max_examples=50)
@given(
    weights=st.lists(st.floats(0, 1e6), min_size=4, max_size=40).filter(any),
    chosen=st.integers(1, 3),
)
def test_shares_add_up_to_what_a_token_chooses(weights: list[float], chosen: int) -> None:
    shared = share_out(np.array(weights), chosen)
    assert shared.sum() == pytest.approx(chosen)
    assert shared.min() > 0
    assert shared.max() <= 1
    assert np.all(np.diff(shared[np.argsort(weights)]) >= 0)


@pytest.mark.parametrize(("text", "experts", "chosen"), [("zipf:1", 128, 8), ("zipf:0.5", 64, 2)])
def test_biases_give_the_frequencies(text: str, experts: int, chosen: int) -> None:
    wanted = parse_skew(text, experts).frequencies(0, chosen)
    biases = logit_biases(wanted, chosen)
    logits = biases + np.random.default_rng(1).standard_normal((4096, experts))
    tops = np.argsort(-logits, axis=1)[:, :chosen]
    found = np.bincount(tops.reshape(-1), minlength=experts) / 4096
    order = np.argsort(-wanted).tolist()
    np.testing.assert_allclose(
        top_shares(found, order), top_shares(wanted, order), atol=ROUTING_SHARE
    )


def test_layers_differ_in_which_experts_are_hot() -> None:
    skew = parse_skew("zipf:1", 32)
    first, second = skew.frequencies(0, 4), skew.frequencies(1, 4)
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()
    assert router_column(skew, 0, 4).tolist() == router_column(skew, 0, 4).tolist()


def test_frequencies_of_a_table(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("1,1,2\n\n3,0,1\n")
    skew = parse_skew(str(table), 3)
    assert skew.frequencies(0, 1).tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert skew.frequencies(1, 1).tolist() == pytest.approx([0.75, 0.0, 0.25], abs=1e-3)
    assert skew.frequencies(2, 1).tolist() == skew.frequencies(0, 1).tolist()


def test_frequencies_of_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"tok": 1, "layers": [[0, 2]]}\n{"tok": 2, "layers": [[1, 2]]}\n')
    (curve,) = parse_skew(str(trace), 3).curves
    assert curve.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zipf:x", "--skew: not a number"),
        ("zipf:-1", "0 to 8"),
        ("zipf:nan", "0 to 8"),
    ],
)
def test_bad_curves(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_skew(text, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n", "another number of experts; expected 3, got 2"),
        ("1,a,2\n", "not frequencies"),
        ("0,0,0\n", "not frequencies"),
        ("1,-1,1\n", "not frequencies"),
        ("1,inf,1\n", "not frequencies"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, message: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(content)
    with pytest.raises(UsageError, match=message):
        parse_skew(str(table), 3)
