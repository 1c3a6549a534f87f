"""Handles of layer parts refuse what does not fit before a kernel touches it."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.quant.layout import Floats
from tests.support.matrices import random_stored

HIDDEN, DIM, HEADS, KV_HEADS, CONTEXT = 64, 16, 4, 2, 8
Q8 = Format("q8", 32)


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, dtype=np.float32)


def matrix(rows: int, cols: int) -> _native.Matrix:
    return random_stored(np.random.default_rng(0), Q8, rows, cols).native


def attention(o_cols: int = HEADS * DIM, norm: int = HIDDEN) -> _native.AttentionPart:
    kv = KV_HEADS * DIM
    return _native.AttentionPart(
        zeros(norm), 1e-6, matrix(HEADS * DIM, HIDDEN), matrix(kv, HIDDEN), matrix(kv, HIDDEN),
        matrix(HIDDEN, o_cols), None, None, DIM, DIM**-0.5, False,
    )  # fmt: skip


def run(spans: list[tuple[int, int, int]], tokens: int = 2, h_cols: int = HIDDEN) -> None:
    cache = _native.KvView(zeros(KV_HEADS, CONTEXT, DIM), zeros(KV_HEADS, CONTEXT, DIM))
    rope = _native.RopeView(zeros(tokens, DIM // 2), zeros(tokens, DIM // 2))
    h = _native.FloatRows(zeros(tokens, h_cols))
    at = [(*span, cache) for span in spans]
    attention().add_to(_native.Pool(1), _native.PartSpace(), h, rope, at)


def test_attention_refuses_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[AttentionPart\] q: expected"):
        attention(o_cols=2 * HEADS * DIM)
    with pytest.raises(ValueError, match=r"\[AttentionPart\] norm: expected"):
        attention(norm=HIDDEN + 1)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([], "rows of the spans: expected 2, got 0"),
        ([(0, 1, 0)], "rows of the spans: expected 2, got 1"),
        ([(0, 2, CONTEXT - 1)], "start: expected 0 to 6, got 7"),
        ([(0, 2, -1)], "spans: expected rows in turn"),
        ([(1, 2, 0), (0, 1, 0)], "spans: expected rows in turn"),
    ],
)
def test_attention_refuses_spans_that_do_not_fit(
    spans: list[tuple[int, int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(spans)


def test_attention_refuses_a_ring_without_room() -> None:
    kv, o = matrix(KV_HEADS * DIM, HIDDEN), matrix(HIDDEN, HEADS * DIM)
    q = matrix(HEADS * DIM, HIDDEN)
    part = _native.AttentionPart(
        zeros(HIDDEN), 1e-6, q, kv, kv, o, None, None, DIM, DIM**-0.5, False, window=100
    )
    cache = _native.KvView(zeros(KV_HEADS, 128, DIM), zeros(KV_HEADS, 128, DIM))
    rope = _native.RopeView(zeros(30, DIM // 2), zeros(30, DIM // 2))
    h = _native.FloatRows(zeros(30, HIDDEN))
    with pytest.raises(ValueError, match=r"\[AttentionPart\] tokens: expected at most 29, got 30"):
        part.add_to(_native.Pool(1), _native.PartSpace(), h, rope, [(0, 30, 0, cache)])


def test_attention_takes_what_just_fits() -> None:
    run([(0, 2, CONTEXT - 2)])
    with pytest.raises(ValueError, match=r"\[AttentionPart\] h: expected"):
        run([(0, 2, 0)], h_cols=HIDDEN + 32)


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ([64], "addresses: expected 2, got 1"),
        ([64, 0], "addresses: expected records, got 0"),
    ],
)
def test_experts_of_a_token_refuse_what_does_not_fit(addresses: list[int], message: str) -> None:
    layout = _native.ExpertLayout("q8", 32, "q8", 32, HIDDEN, 32, 65536)
    x, weights, h = (_native.FloatRows(zeros(1, n)) for n in (HIDDEN, 2, HIDDEN))
    records = _native.RecordsView(np.array(addresses, dtype=np.uint64))
    with pytest.raises(ValueError, match=message):
        _native.add_token_experts(
            _native.Pool(1), _native.PartSpace(), layout, x, records, weights, h
        )


def test_all_finite() -> None:
    x = np.random.default_rng(0).standard_normal((3, 37)).astype(np.float32)
    assert _native.all_finite(x)
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 50, x.size - 1):
            bad = x.copy()
            bad.reshape(-1)[place] = value
            assert not _native.all_finite(bad)


def test_sigmoid_is_the_nearest_float() -> None:
    x = np.array([[-200, -30, -1, -1e-3, 0, 1e-3, 1, 30, 200]], dtype=np.float32)
    out = np.empty_like(x)
    _native.sigmoid(x, out)
    with np.errstate(over="ignore"):
        expected = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    np.testing.assert_array_max_ulp(out, expected, maxulp=1)
