"""softmax_topk and combine against float64 twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import ROW, SOFTMAX


def choose(
    logits: Floats, topk: int, renormalize: bool = False, scale: float = 1.0
) -> tuple[NDArray[np.int32], Floats]:
    ids = np.full((len(logits), topk), -1, dtype=np.int32)
    weights = unwritten(len(logits), topk)
    _native.softmax_topk(logits, ids, weights, renormalize, scale)
    return ids, weights


def choose_in_groups(
    logits: Floats, correction: Floats, groups: tuple[int, int], topk: int, renormalize: bool = True
) -> tuple[NDArray[np.int32], Floats]:
    ids = np.full((len(logits), topk), -1, dtype=np.int32)
    weights = unwritten(len(logits), topk)
    _native.sigmoid_topk(logits, correction, *groups, ids, weights, renormalize, 2.5)
    return ids, weights


def add_up(rows: Floats, weights: Floats, out: Floats, threads: int = 2) -> Floats:
    total = out.copy()
    _native.combine(_native.Pool(threads), rows, weights, total)
    return total


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("experts", "topk"), [(1, 1), (8, 2), (60, 4), (128, 8), (513, 10)])
def test_choice_matches_the_reference(isa: str, experts: int, topk: int, renormalize: bool) -> None:
    logits = normal(np.random.default_rng(1), 65, experts, scale=3)
    ids, weights = choose(logits, topk, renormalize, 2.5)
    expected_ids, expected = reference.softmax_topk(logits, topk, renormalize, 2.5)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=SOFTMAX)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1.0, 3.0]), min_size=1, max_size=40),
    data=st.data(),
)
def test_equal_logits_are_chosen_in_order_of_their_ids(
    isa: str, row: list[float], data: st.DataObject
) -> None:
    logits = np.array([row], dtype=np.float32)
    topk = data.draw(st.integers(1, len(row)))
    ids, weights = choose(logits, topk)
    expected_ids, expected = reference.softmax_topk(logits, topk, False, 1.0)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=SOFTMAX)


def test_large_logits_do_not_overflow(isa: str) -> None:
    ids, weights = choose(np.array([[1e30, -1e30, 1e30, 5]], dtype=np.float32), 2)
    assert ids.tolist() == [[0, 2]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_nan_logits_rank_last_and_show_in_the_weights(isa: str) -> None:
    logits = np.array([[np.nan, 1, np.nan, 2], [0, 1, 2, 3]], dtype=np.float32)
    ids, weights = choose(logits, 3)
    assert ids.tolist() == [[3, 1, 0], [3, 2, 1]]
    assert np.isnan(weights[0]).all()
    assert np.isfinite(weights[1]).all()


def test_a_choice_does_not_depend_on_the_other_tokens(isa: str) -> None:
    logits = normal(np.random.default_rng(2), 7, 130)
    ids, weights = choose(logits, 8, renormalize=True)
    for t in range(7):
        alone_ids, alone = choose(logits[t : t + 1], 8, renormalize=True)
        np.testing.assert_array_equal(alone_ids[0], ids[t])
        np.testing.assert_array_equal(alone[0], weights[t])


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    ("experts", "groups", "topk"),
    [(1, (1, 1), 1), (8, (8, 4), 2), (64, (1, 1), 4), (256, (8, 4), 8), (384, (4, 4), 8)],
)
def test_sigmoid_choice_matches_the_reference(
    isa: str, experts: int, groups: tuple[int, int], topk: int, renormalize: bool
) -> None:
    rng = np.random.default_rng(5)
    logits, correction = normal(rng, 65, experts, scale=2), normal(rng, experts, scale=0.2)
    ids, weights = choose_in_groups(logits, correction, groups, topk, renormalize)
    expected_ids, expected = reference.sigmoid_topk(
        logits, correction, *groups, topk, renormalize, 2.5
    )
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=SOFTMAX)


def test_the_correction_moves_the_choice_and_not_the_weights(isa: str) -> None:
    logits, correction = np.zeros((1, 6), np.float32), np.zeros(6, np.float32)
    correction[[1, 4]] = 3, -3
    ids, weights = choose_in_groups(logits, correction, (1, 1), 2, renormalize=False)
    assert ids.tolist() == [[1, 0]]
    assert weights.tolist() == [[1.25, 1.25]]


def test_the_best_group_wins_by_its_two_best(isa: str) -> None:
    logits = np.array([[9, -9, -9, 2, 2, 2]], dtype=np.float32)
    ids, _ = choose_in_groups(logits, np.zeros(6, np.float32), (2, 1), 2)
    assert ids.tolist() == [[3, 4]]


def test_a_negative_score_in_a_chosen_group_beats_all_outside(isa: str) -> None:
    logits, correction = np.zeros((1, 6), np.float32), np.full(6, -5, np.float32)
    correction[3:] = -9
    ids, _ = choose_in_groups(logits, correction, (2, 1), 3)
    assert ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("where", ["logits", "correction"])
def test_nan_shows_in_every_sigmoid_weight_of_its_token(isa: str, where: str) -> None:
    rng = np.random.default_rng(6)
    logits, correction = normal(rng, 2, 8), normal(rng, 8)
    if where == "logits":
        logits[0, 5] = np.nan
    else:
        correction[5] = np.nan
    _, weights = choose_in_groups(logits, correction, (4, 2), 3)
    assert np.isnan(weights[0]).all()
    assert np.isfinite(weights[1]).all() == (where == "logits")


@pytest.mark.parametrize("dim", [1, 8, 70, 1023, 1024, 1025, 2049])
def test_combine_adds_the_weighted_rows(isa: str, dim: int) -> None:
    rng = np.random.default_rng(3)
    for tokens, topk in ((1, 1), (2, 8), (7, 3)):
        rows, weights = normal(rng, tokens * topk, dim), normal(rng, tokens, topk)
        out = normal(rng, tokens, dim)
        assert_close(add_up(rows, weights, out), reference.combine(rows, weights, out), ROW)


def test_combine_does_not_depend_on_the_other_tokens_or_on_threads(isa: str) -> None:
    rng = np.random.default_rng(4)
    rows, weights, out = normal(rng, 65 * 8, 2050), normal(rng, 65, 8), normal(rng, 65, 2050)
    alone = [add_up(rows[8 * t : 8 * t + 8], weights[t : t + 1], out[t : t + 1]) for t in range(65)]
    for threads in THREADS:
        np.testing.assert_array_equal(add_up(rows, weights, out, threads), np.concatenate(alone))


def test_wrong_arrays_are_refused() -> None:
    logits, weights = unwritten(2, 8), unwritten(2, 3)
    ids = np.zeros((2, 3), dtype=np.int32)
    with pytest.raises(ValueError, match=r"\[softmax_topk\] ids: expected int32 \[2, any\]"):
        _native.softmax_topk(logits, ids.astype(np.int64), weights, True, 1.0)
    with pytest.raises(ValueError, match=r"\[softmax_topk\] ids: expected 1 to 2 columns, got 3"):
        _native.softmax_topk(unwritten(2, 2), ids, weights, True, 1.0)
    correction = unwritten(8)
    with pytest.raises(
        ValueError, match=r"\[sigmoid_topk\] groups: expected a divisor of 8, got 3"
    ):
        _native.sigmoid_topk(logits, correction, 3, 1, ids, weights, True, 1.0)
    with pytest.raises(ValueError, match=r"chosen_groups: expected 1 to 4, got 5"):
        _native.sigmoid_topk(logits, correction, 4, 5, ids, weights, True, 1.0)
    with pytest.raises(ValueError, match=r"\[sigmoid_topk\] ids: expected 1 to 2 columns, got 3"):
        _native.sigmoid_topk(logits, correction, 4, 1, ids, weights, True, 1.0)
    with pytest.raises(ValueError, match=r"\[combine\] rows: expected float32 \[6, 8\]"):
        _native.combine(_native.Pool(1), unwritten(5, 8), weights, unwritten(2, 8))
