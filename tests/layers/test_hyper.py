"""Hyper-connections against the same formulas in float64, and their promises."""

from __future__ import annotations

import numpy as np

from flashmoe.layers.hyper import HeadStreams, StreamWeights, enter, leave
from tests.support.tolerances import STREAMS

STREAM, HIDDEN = 4, 24


def weights(seed: int = 0) -> StreamWeights:
    rng = np.random.default_rng(seed)
    rows = STREAM * (2 + STREAM)
    return StreamWeights(
        maps=rng.standard_normal((rows, STREAM * HIDDEN)).astype(np.float32) * np.float32(0.2),
        base=rng.standard_normal(rows).astype(np.float32),
        scale=np.array([0.7, 1.3, 0.4], np.float32),
        streams=STREAM,
        iterations=20,
        eps=1e-6,
        norm_eps=1e-6,
    )


def streams(tokens: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.standard_normal((tokens, STREAM * HIDDEN)).astype(np.float32) * np.float32(3)


def expected(h: np.ndarray, w: StreamWeights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, out and across, by loops in float64."""
    xs, outs, acrosses = [], [], []
    for row in h.astype(np.float64):
        m = w.maps.astype(np.float64) @ (row / np.sqrt(np.mean(row**2) + w.norm_eps))
        s, b = w.scale.astype(np.float64), w.base.astype(np.float64)
        into = 1 / (1 + np.exp(-(m[:4] * s[0] + b[:4]))) + w.eps
        outs.append(2 / (1 + np.exp(-(m[4:8] * s[1] + b[4:8]))))
        c = np.exp((m[8:] * s[2] + b[8:]).reshape(4, 4))
        c = c / c.sum(1, keepdims=True) + w.eps
        c = c / (c.sum(0) + w.eps)
        for _ in range(w.iterations - 1):
            c = c / (c.sum(1, keepdims=True) + w.eps)
            c = c / (c.sum(0) + w.eps)
        acrosses.append(c)
        xs.append(into @ row.reshape(STREAM, HIDDEN))
    return np.array(xs), np.array(outs), np.array(acrosses)


def test_the_formulas() -> None:
    w, h = weights(), streams(70)
    mixed, (x, out, across) = enter(h, w), expected(h, w)
    np.testing.assert_allclose(mixed.x, x, atol=STREAMS)
    np.testing.assert_allclose(mixed.out, out, atol=STREAMS)
    np.testing.assert_allclose(mixed.across, across, atol=STREAMS)
    y = np.random.default_rng(2).standard_normal((70, HIDDEN)).astype(np.float32)
    after = out[..., None] * y[:, None]
    after += np.einsum("tjk,tjd->tkd", across, h.astype(np.float64).reshape(70, STREAM, HIDDEN))
    leave(h, y, mixed)
    np.testing.assert_allclose(h.reshape(after.shape), after, atol=4 * STREAMS)


def test_what_crosses_streams_is_doubly_stochastic() -> None:
    across = enter(streams(50), weights(3)).across
    np.testing.assert_allclose(across.sum(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(across.sum(axis=2), 1, atol=1e-2)


def test_a_row_does_not_depend_on_the_others() -> None:
    w, h = weights(), streams(67)
    whole, y = enter(h, w), np.ones((67, HIDDEN), np.float32)
    for row in (0, 31, 32, 66):
        one = h[row : row + 1].copy()
        alone = enter(one, w)
        for got, full in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(got[0], full[row])
        leave(one, y[:1], alone)
        changed = h.copy()
        leave(changed, y, whole)
        np.testing.assert_array_equal(one[0], changed[row])


def test_the_head_spreads_and_collapses() -> None:
    rng = np.random.default_rng(4)
    maps = rng.standard_normal((STREAM, STREAM * HIDDEN)).astype(np.float32)
    base, scale = rng.standard_normal(STREAM).astype(np.float32), np.array([0.5], np.float32)
    head = HeadStreams(maps, base, scale, eps=1e-6, norm_eps=1e-6)
    h = rng.standard_normal((5, HIDDEN)).astype(np.float32)
    spread = head.spread(h)
    np.testing.assert_array_equal(spread.reshape(5, STREAM, HIDDEN), np.stack([h] * STREAM, 1))
    norm = spread / np.sqrt(np.mean(spread**2, axis=1, keepdims=True) + 1e-6)
    gates = 1 / (1 + np.exp(-(norm @ maps.T * 0.5 + base))) + 1e-6
    expected_sum = h * gates.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.collapse(spread), expected_sum, atol=STREAMS)
