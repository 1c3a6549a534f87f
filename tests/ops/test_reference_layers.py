"""The NumPy twins of the layer kernels against definitions written another way."""

from __future__ import annotations

import numpy as np

from flashmoe.ops import reference_layers as reference
from tests.support.arrays import Floats, normal
from tests.support.tolerances import EXACT, NORM_EPS, ROUNDED

Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def test_rms_norm_gives_rows_of_unit_mean_square() -> None:
    x = normal(np.random.default_rng(1), 3, 50, scale=7)
    y = reference.rms_norm(x, np.ones(50, dtype=np.float32), 0.0)
    np.testing.assert_allclose((y**2).mean(axis=1), 1, rtol=EXACT)
    np.testing.assert_allclose(y / y[:, :1], x / x[:, :1].astype(float), rtol=ROUNDED)


def test_rope_rotates_pairs_half_a_rotation_apart() -> None:
    x = np.array([[[1, 10, 0, 20, 5]]], dtype=np.float32)  # pairs (1, 0) and (10, 20); 5 passes
    cos, sin = np.array([[0, 1]], dtype=np.float32), np.array([[1, 0]], dtype=np.float32)
    y = reference.head_norm_rope(x, None, 1e-6, cos, sin)
    np.testing.assert_array_equal(y[0, 0], [0, 10, 1, 20, 5])


def test_attention_of_equal_scores_is_the_mean_of_what_is_seen() -> None:
    rng = np.random.default_rng(2)
    keys, values = np.zeros((2, 9, 4), dtype=np.float32), normal(rng, 2, 9, 4)
    out = reference.attention(normal(rng, 3, 4, 4), keys, values, 5, 0.5)
    for t in range(3):
        mean = values[:, : 5 + t + 1].astype(float).mean(axis=1)
        np.testing.assert_allclose(out[t], mean.repeat(2, axis=0), rtol=EXACT)


def test_attention_of_one_overwhelming_score_is_its_value() -> None:
    rng = np.random.default_rng(3)
    keys, values = np.zeros((1, 6, 4), dtype=np.float32), normal(rng, 1, 6, 4)
    keys[0, 2] = 1e4
    out = reference.attention(np.ones((1, 1, 4), dtype=np.float32), keys, values, 5, 1.0)
    np.testing.assert_array_equal(out[0, 0], values[0, 2])


def test_conv_is_the_sum_over_delayed_inputs() -> None:
    rng = np.random.default_rng(4)
    u, weight, state = normal(rng, 6, 2), normal(rng, 2, 3), normal(rng, 2, 2)
    out, newest = reference.causal_conv_silu(u, weight, state)
    stream = [*state, *u]
    for t in range(6):
        x = sum(weight[:, 2 - j].astype(float) * stream[t + 2 - j] for j in range(3))
        np.testing.assert_allclose(out[t], x / (1 + np.exp(-x)), rtol=EXACT)
    np.testing.assert_array_equal(newest, u[-2:])


def test_delta_stores_a_value_that_its_key_reads_back() -> None:
    # beta 1 and no decay: after writing v at k, S^T k is v, whatever was there before.
    rng = np.random.default_rng(5)
    k, v = normal(rng, 8), normal(rng, 5)
    qkv = np.concatenate([k, k, v])[None]
    one, gate = np.full((1, 1), 100, dtype=np.float32), np.zeros(1, dtype=np.float32)
    state = normal(rng, 1, 8, 5)
    out, _ = reference.gated_delta(qkv, -one, one, gate, gate, state, key_heads=1)
    np.testing.assert_allclose(out[0, 0] * np.sqrt(8), v, rtol=NORM_EPS)


def test_delta_step_by_step_as_in_the_definition() -> None:
    rng = np.random.default_rng(6)
    heads, key_dim, value_dim = 4, 6, 3
    qkv = normal(rng, 5, 2 * 2 * key_dim + heads * value_dim)
    a, b, a_log, dt_bias = (normal(rng, *s) for s in ((5, 4), (5, 4), (4,), (4,)))
    state = normal(rng, heads, key_dim, value_dim)
    out, final = reference.gated_delta(qkv, a, b, a_log, dt_bias, state, key_heads=2)
    s = state.astype(float)
    for t in range(5):
        q, k, v = split(qkv[t], 2, key_dim, heads)
        step = np.log1p(np.exp(a[t].astype(float) + dt_bias))
        s = s * np.exp(-np.exp(a_log.astype(float)) * step)[:, None, None]
        error = v - np.einsum("hkv,hk->hv", s, k)
        s = s + np.einsum("hk,hv->hkv", k, error / (1 + np.exp(-b[t].astype(float)))[:, None])
        np.testing.assert_allclose(out[t], np.einsum("hkv,hk->hv", s, q), rtol=ROUNDED, atol=EXACT)
    np.testing.assert_allclose(final, s, rtol=ROUNDED, atol=EXACT)


def split(
    row: Floats, key_heads: int, key_dim: int, heads: int
) -> tuple[Doubles, Doubles, Doubles]:
    """q, k (normalised, repeated for each value head) and v of one token."""
    keys = key_heads * key_dim
    q, k = row[: 2 * keys].reshape(2, key_heads, key_dim).astype(float)
    q, k = (x / np.sqrt((x**2).sum(axis=1, keepdims=True) + 1e-6) for x in (q, k))
    q, k = (x.repeat(heads // key_heads, axis=0) for x in (q * key_dim**-0.5, k))
    return q, k, row[2 * keys :].reshape(heads, -1).astype(float)


def test_softmax_topk_by_hand() -> None:
    logits = np.log(np.array([[1, 4, 3, 4, 0.5]])).astype(np.float32)
    ids, weights = reference.softmax_topk(logits, 3, False, 2.0)
    assert ids.tolist() == [[1, 3, 2]]
    np.testing.assert_allclose(weights, [[8 / 12.5, 8 / 12.5, 6 / 12.5]], rtol=ROUNDED)
    _, weights = reference.softmax_topk(logits, 3, True, 1.0)
    np.testing.assert_allclose(weights, [[4 / 11, 4 / 11, 3 / 11]], rtol=ROUNDED)


def test_combine_by_hand() -> None:
    rows = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.float32)
    weights = np.array([[1, 10], [2, 0]], dtype=np.float32)
    out = np.array([[100, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(reference.combine(rows, weights, out), [[131, 42], [10, 12]])


def test_attention_with_a_window_and_sinks_by_hand() -> None:
    keys = np.zeros((1, 3, 1), dtype=np.float32)  # a ring of 3: positions 3, 1, 2
    values = np.array([[[8], [2], [4]]], dtype=np.float32)
    q, sinks = np.ones((1, 2, 1), dtype=np.float32), np.log([1, 2]).astype(np.float32)
    out = reference.attention(q, keys, values, 3, 1.0, window=2, sinks=sinks)
    np.testing.assert_allclose(out[0, :, 0], [(4 + 8) / 3, (4 + 8) / 4], rtol=ROUNDED)
    out = reference.attention(q, keys, values, 3, 1.0, window=1)
    np.testing.assert_allclose(out[0, :, 0], [8, 8], rtol=ROUNDED)
