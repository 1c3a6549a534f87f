"""head_norm_rope against its float64 twin."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import ROW

EPS = 1e-6
SHAPES = [(64, 64), (80, 20), (128, 128), (256, 64), (66, 18), (8, 2)]  # dim, rotated


def angles(rng: np.random.Generator, tokens: int, rotated: int) -> tuple[Floats, Floats]:
    turn = rng.uniform(0, 2 * np.pi, (tokens, rotated // 2))
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


def head_norm_rope(
    x: Floats, weight: Floats | None, cos: Floats, sin: Floats, threads: int = 2
) -> Floats:
    out = unwritten(*x.shape)
    _native.head_norm_rope(_native.Pool(threads), x, weight, EPS, cos, sin, out)
    return out


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(isa: str, shape: tuple[int, int], normed: bool) -> None:
    dim, rotated = shape
    rng = np.random.default_rng(1)
    for tokens in (1, 2, 7, 65):
        x, (cos, sin) = normal(rng, tokens, 3, dim), angles(rng, tokens, rotated)
        weight = normal(rng, dim) if normed else None
        expected = reference.head_norm_rope(x, weight, EPS, cos, sin)
        assert_close(head_norm_rope(x, weight, cos, sin), expected, ROW)


def test_dimensions_past_the_rotated_ones_pass_through(isa: str) -> None:
    rng = np.random.default_rng(2)
    x, (cos, sin) = normal(rng, 4, 2, 96), angles(rng, 4, 24)
    np.testing.assert_array_equal(head_norm_rope(x, None, cos, sin)[..., 24:], x[..., 24:])


@pytest.mark.parametrize("normed", [True, False])
def test_reads_queries_that_lie_beside_their_gates(isa: str, normed: bool) -> None:
    rng = np.random.default_rng(3)
    both, (cos, sin) = normal(rng, 5, 3, 2 * 64), angles(rng, 5, 32)
    weight = normal(rng, 64) if normed else None
    got = head_norm_rope(both[:, :, :64], weight, cos, sin)
    expected = head_norm_rope(both[:, :, :64].copy(), weight, cos, sin)
    np.testing.assert_array_equal(got, expected)


def test_writes_into_a_part_of_wider_rows(isa: str) -> None:
    rng = np.random.default_rng(5)
    x, (cos, sin) = normal(rng, 5, 3, 16), angles(rng, 5, 16)
    wide = unwritten(5, 3, 40)
    _native.head_norm_rope(_native.Pool(2), x, None, EPS, cos, sin, wide[..., 24:])
    np.testing.assert_array_equal(wide[..., 24:], head_norm_rope(x, None, cos, sin))
    assert np.isnan(wide[..., :24]).all()


def test_a_token_does_not_depend_on_the_others_or_on_threads(isa: str) -> None:
    rng = np.random.default_rng(4)
    x, (cos, sin) = normal(rng, 65, 8, 128), angles(rng, 65, 64)
    weight = normal(rng, 128)
    alone = [
        head_norm_rope(x[t : t + 1], weight, cos[t : t + 1], sin[t : t + 1]) for t in range(65)
    ]
    for threads in THREADS:
        got = head_norm_rope(x, weight, cos, sin, threads)
        np.testing.assert_array_equal(got, np.concatenate(alone))


def test_wrong_arrays_are_refused() -> None:
    pool, x, out = _native.Pool(1), unwritten(2, 3, 8), unwritten(2, 3, 8)
    cos = unwritten(2, 4)
    with pytest.raises(ValueError, match=r"\[head_norm_rope\] cos: expected at most 4 columns"):
        _native.head_norm_rope(pool, x, None, EPS, unwritten(2, 5), unwritten(2, 5), out)
    with pytest.raises(ValueError, match=r"\[head_norm_rope\] sin: expected float32 \[2, 4\]"):
        _native.head_norm_rope(pool, x, None, EPS, cos, unwritten(2, 3), out)
    with pytest.raises(ValueError, match=r"\[head_norm_rope\] weight: expected float32 \[8\]"):
        _native.head_norm_rope(pool, x, unwritten(4), EPS, cos, cos, out)
    with pytest.raises(ValueError, match=r"\[head_norm_rope\] x: expected stride 1 in dimension 2"):
        _native.head_norm_rope(pool, unwritten(2, 3, 16)[..., ::2], None, EPS, cos, cos, out)
