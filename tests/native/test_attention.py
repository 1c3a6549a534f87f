"""attention and kv_store against float64 twins, and bit-identical however a prompt is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import ATTENTION, ATTENTION_LARGE_SCORES

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])


@dataclass
class Case:
    """Queries at positions start.. and caches that are NaN past the last of them."""

    q: Floats
    keys: NDArray[np.floating]
    values: NDArray[np.floating]
    start: int

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)

    def run(self, threads: int = 2) -> Floats:
        return self.run_rows(0, len(self.q), threads)

    def run_rows(self, first: int, end: int, threads: int = 2) -> Floats:
        """The result of a call with queries first..end alone."""
        out = unwritten(end - first, *self.q.shape[1:])
        _native.attention(
            _native.Pool(threads),
            self.q[first:end],
            self.keys,
            self.values,
            self.start + first,
            self.scale,
            out,
        )
        return out

    def expected(self) -> NDArray[np.float64]:
        return reference.attention(self.q, self.keys, self.values, self.start, self.scale)


def case(
    tokens: int,
    start: int = 0,
    heads: tuple[int, int] = (4, 2),
    dim: int = 64,
    dtype: type[np.floating] = np.float32,
    spare: int = 3,
) -> Case:
    rng = np.random.default_rng(1)
    end = start + tokens
    keys, values = (np.full((heads[1], end + spare, dim), np.nan, dtype=dtype) for _ in range(2))
    keys[:, :end] = normal(rng, heads[1], end, dim)
    values[:, :end] = normal(rng, heads[1], end, dim)
    return Case(normal(rng, tokens, heads[0], dim, scale=2), keys, values, start)


@dtypes
@pytest.mark.parametrize("dim", [1, 8, 20, 64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1), (3, 1)], ids=str)
def test_matches_the_reference(
    isa: str, heads: tuple[int, int], dim: int, dtype: type[np.floating]
) -> None:
    for tokens, start in ((1, 0), (1, 62), (2, 63), (7, 60), (65, 0)):
        one = case(tokens, start, heads, dim, dtype)
        assert_close(one.run(), one.expected(), ATTENTION)


@dtypes
@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 200, 511, 512, 513, 1500])
def test_matches_the_reference_at_every_start(
    isa: str, start: int, dtype: type[np.floating]
) -> None:
    for tokens in (1, 2, 7, 64, 130):
        one = case(tokens, start, (8, 2), 16, dtype)
        assert_close(one.run(), one.expected(), ATTENTION)


@dtypes
@pytest.mark.parametrize("heads", [(8, 1), (4, 4), (10, 2)], ids=str)
def test_prefill_equals_token_by_token_for_any_thread_count(
    isa: str, heads: tuple[int, int], dtype: type[np.floating]
) -> None:
    one = case(150, 1950, heads, 40, dtype)  # many blocks, five spans: merging has an order
    alone = np.concatenate([one.run_rows(t, t + 1, threads=1) for t in range(150)])
    for threads in (*THREADS, 16):
        np.testing.assert_array_equal(one.run(threads), alone)
    for t in (0, 61, 62, 63, 149):
        np.testing.assert_array_equal(one.run_rows(t, t + 1, threads=16), alone[t : t + 1])


@dtypes
@pytest.mark.parametrize(
    ("heads", "dim"), [((16, 1), 200), ((5, 1), 136), ((130, 1), 20), ((6, 2), 264), ((3, 3), 33)]
)
def test_tiles_of_odd_sizes_match_the_reference_and_single_tokens(
    isa: str, heads: tuple[int, int], dim: int, dtype: type[np.floating]
) -> None:
    # Rows, keys and columns beyond whole tiles and panels; depths beyond one packed panel.
    one = case(45, 490, heads, dim, dtype)
    whole = one.run()
    assert_close(whole, one.expected(), ATTENTION)
    for t in (0, 5, 21, 22, 44):
        np.testing.assert_array_equal(one.run_rows(t, t + 1, threads=1), whole[t : t + 1])


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tokens=st.integers(1, 90),
    start=st.integers(0, 1100),
    group=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    data=st.data(),
)
def test_result_does_not_depend_on_where_a_prompt_is_cut(
    isa: str, tokens: int, start: int, group: int, kv_heads: int, data: st.DataObject
) -> None:
    one = case(tokens, start, (group * kv_heads, kv_heads), 24, np.float16)
    cut = data.draw(st.integers(0, tokens))
    parts = [one.run_rows(0, cut), one.run_rows(cut, tokens, threads=5)]
    np.testing.assert_array_equal(np.concatenate(parts), one.run())


def test_scores_of_any_size_give_finite_weights(isa: str) -> None:
    one = case(70, 70, (2, 1), 16)
    one.q *= 1e3
    assert_close(one.run(), one.expected(), ATTENTION_LARGE_SCORES)


def test_a_broken_later_token_leaves_earlier_ones_alone(isa: str) -> None:
    whole, broken = case(80, 10), case(80, 10)
    broken.keys[:, 60:], broken.values[:, 60:] = np.nan, np.inf
    np.testing.assert_array_equal(broken.run()[:50], whole.run()[:50])
    assert np.isnan(broken.run()[50:]).all()


@dtypes
def test_kv_store_writes_its_positions_and_nothing_else(isa: str, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(2)
    k, v = normal(rng, 5, 3, 20), normal(rng, 5, 3, 20)
    caches = [np.full((3, 12, 20), np.nan, dtype=dtype) for _ in range(2)]
    _native.kv_store(_native.Pool(2), k, v, *caches, 4)
    for cache, rows in zip(caches, (k, v), strict=True):
        np.testing.assert_array_equal(cache[:, 4:9], rows.transpose(1, 0, 2).astype(dtype))
        assert np.isnan(cache[:, :4]).all()
        assert np.isnan(cache[:, 9:]).all()


def test_kv_store_rounds_to_half_as_numpy_does(isa: str) -> None:
    patterns = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = patterns[np.isfinite(patterns)].astype(np.float32)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    middles = (np.sort(halves)[:-1] + np.sort(halves)[1:]) / 2  # ties, exact in float32
    ends = np.array([65519.996, 65520, -65520, np.inf, -np.inf, np.nan, 1e-8, 0.0, -0.0])
    values = np.concatenate([halves, bits, middles, ends.astype(np.float32)])
    k = values[None, None]
    caches = [np.zeros((1, 1, values.size), dtype=np.float16) for _ in range(2)]
    _native.kv_store(_native.Pool(1), k, k, *caches, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # ARM flags a signalling NaN
        expected = values.astype(np.float16)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(
        caches[0][0, 0].view(np.uint16)[finite], expected.view(np.uint16)[finite]
    )
    assert np.isnan(caches[1][0, 0][~finite]).all()


def test_every_half_is_read_exactly(isa: str) -> None:
    # With one key the output is its value.
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(1, 1, -1)
    q = np.zeros(halves.shape, dtype=np.float32)
    out = unwritten(*halves.shape)
    _native.attention(_native.Pool(1), q, np.zeros_like(halves), halves, 0, 1.0, out)
    np.testing.assert_array_equal(out, halves.astype(np.float32))


def test_wrong_arrays_are_refused() -> None:
    pool, q, cache = _native.Pool(1), unwritten(2, 4, 8), unwritten(2, 6, 8)
    with pytest.raises(ValueError, match=r"\[attention\] start: expected 0 to 4, got 5"):
        _native.attention(pool, q, cache, cache, 5, 1.0, unwritten(2, 4, 8))
    with pytest.raises(ValueError, match=r"\[attention\] q: expected a multiple of 2 heads, got 3"):
        _native.attention(pool, unwritten(2, 3, 8), cache, cache, 0, 1.0, unwritten(2, 3, 8))
    with pytest.raises(
        ValueError, match=r"v_cache: expected float32 \[2, 6, any\], got float16 \[2, 6, 8\]"
    ):
        _native.attention(pool, q, cache, cache.astype(np.float16), 0, 1.0, unwritten(2, 4, 8))
    with pytest.raises(ValueError, match=r"\[kv_store\] k_cache: expected float32 \[4, any, 8\]"):
        _native.kv_store(pool, q, q, cache, cache, 0)
