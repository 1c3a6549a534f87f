"""attention and kv_store where values are narrower than keys, and where both share their rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import ATTENTION

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])
# Heads over one key head, latent and rotated width; the last is DeepSeek-V3's.
SHAPES = [(4, 16, 8), (20, 40, 12), (65, 8, 8), (130, 24, 8), (128, 512, 64)]


def attend(
    q: Floats,
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    start: int,
    threads: int = 2,
) -> Floats:
    out = unwritten(*q.shape[:2], values.shape[2])
    _native.attention(_native.Pool(threads), q, keys, values, start, q.shape[2] ** -0.5, out)
    return out


def latent_case(
    shape: tuple[int, int, int], tokens: int, start: int, dtype: type[np.floating]
) -> tuple[Floats, NDArray[np.floating]]:
    """Queries, and rows that are NaN past the last of them."""
    heads, latent, rope = shape
    rng = np.random.default_rng(1)
    rows = np.full((1, start + tokens + 3, latent + rope), np.nan, dtype=dtype)
    rows[:, : start + tokens] = normal(rng, 1, start + tokens, latent + rope)
    return normal(rng, tokens, heads, latent + rope, scale=2), rows


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_that_are_a_part_of_the_keys(
    isa: str, shape: tuple[int, int, int], dtype: type[np.floating]
) -> None:
    for tokens, start in ((1, 0), (1, 63), (3, 62), (7, 509)):
        q, rows = latent_case(shape, tokens, start, dtype)
        values = rows[..., : shape[1]]
        expected = reference.attention(q, rows, values, start, q.shape[2] ** -0.5)
        assert_close(attend(q, rows, values, start), expected, ATTENTION)


@dtypes
def test_values_of_their_own_narrower_or_wider(isa: str, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(2)
    q, keys = normal(rng, 5, 6, 24), normal(rng, 2, 70, 24).astype(dtype)
    for width in (1, 8, 20, 80):
        values = normal(rng, 2, 70, width).astype(dtype)
        expected = reference.attention(q, keys, values, 60, 24**-0.5)
        assert_close(attend(q, keys, values, 60), expected, ATTENTION)


@dtypes
def test_no_bit_depends_on_the_other_tokens_or_on_threads(
    isa: str, dtype: type[np.floating]
) -> None:
    q, rows = latent_case((130, 24, 8), 70, 500, dtype)
    whole = attend(q, rows, rows[..., :24], 500)
    for threads in THREADS:
        np.testing.assert_array_equal(attend(q, rows, rows[..., :24], 500, threads), whole)
    for t in (0, 11, 12, 69):
        one = attend(q[t : t + 1], rows, rows[..., :24], 500 + t)
        np.testing.assert_array_equal(one[0], whole[t])


@dtypes
def test_store_writes_both_parts_of_a_row(isa: str, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(3)
    rows = np.full((2, 9, 20), np.nan, dtype=dtype)
    k, v = normal(rng, 4, 2, 12), normal(rng, 4, 2, 8)
    _native.kv_store(_native.Pool(2), k, v, rows[..., :12], rows[..., 12:], 3)
    expected = np.concatenate([k, v], axis=2).astype(dtype).swapaxes(0, 1)
    np.testing.assert_array_equal(rows[:, 3:7], expected)
    assert np.isnan(rows[:, :3]).all()
    assert np.isnan(rows[:, 7:]).all()


def test_rows_out_of_line_are_refused() -> None:
    pool, q = _native.Pool(1), unwritten(1, 2, 8)
    cache = unwritten(2, 6, 16)
    with pytest.raises(ValueError, match=r"k_cache: expected stride 1 in dimension 2, got 2"):
        _native.attention(pool, q, cache[..., ::2], cache[..., :8], 0, 1.0, unwritten(1, 2, 8))
    apart = unwritten(3, 6, 8)[::2]
    with pytest.raises(ValueError, match=r"k_cache: expected stride 48 in dimension 0, got 96"):
        _native.attention(pool, q, apart, apart, 0, 1.0, unwritten(1, 2, 8))
    with pytest.raises(ValueError, match=r"out: expected float32 \[1, 2, 4\]"):
        _native.attention(pool, q, cache[..., :8], cache[..., :4], 0, 1.0, unwritten(1, 2, 8))
