"""attention with windows, rings and sinks: against NumPy, bit-identical however it is cut."""

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
from tests.support.tolerances import ATTENTION

WINDOWS = [1, 2, 20, 63, 64, 65, 128, 600]
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])


@dataclass
class Case:
    """A whole sequence; `run` feeds it to a cache of its own, piece by piece."""

    q: Floats
    k: Floats
    v: Floats
    window: int
    context: int
    sinks: Floats | None
    dtype: type[np.floating] = np.float32

    def run(self, *cuts: int, threads: int = 2) -> Floats:
        """The results of all queries, fed in pieces that end at the cuts."""
        pool, heads, dim = _native.Pool(threads), self.k.shape[1], self.k.shape[2]
        caches = [np.full((heads, self.context, dim), np.nan, self.dtype) for _ in range(2)]
        out = unwritten(*self.q.shape)
        for begin, end in zip((0, *cuts), (*cuts, len(self.q)), strict=True):
            rows = slice(begin, end)
            _native.kv_store(pool, self.k[rows], self.v[rows], *caches, begin, self.window)
            arguments = (begin, self.scale, out[rows], self.window, self.sinks)
            _native.attention(pool, self.q[rows], *caches, *arguments)
        return out

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)

    def expected(self) -> NDArray[np.float64]:
        caches = (x.astype(self.dtype).transpose(1, 0, 2) for x in (self.k, self.v))
        return reference.attention(self.q, *caches, 0, self.scale, self.window, self.sinks)


def case(
    tokens: int,
    window: int,
    room: int,
    heads: tuple[int, int] = (4, 2),
    dim: int = 16,
    dtype: type[np.floating] = np.float32,
    sinks: bool = True,
) -> Case:
    """room: tokens that a call may have; the ring is no larger than that needs."""
    rng = np.random.default_rng(5)
    context = -(-(window + room - 1) // 64) * 64 if window else tokens
    return Case(
        normal(rng, tokens, heads[0], dim, scale=2),
        normal(rng, tokens, heads[1], dim),
        normal(rng, tokens, heads[1], dim),
        window,
        context,
        normal(rng, heads[0], scale=2) if sinks else None,
        dtype,
    )


@dtypes
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", [(4, 4), (8, 1)], ids=str)
def test_matches_the_reference(
    isa: str, heads: tuple[int, int], window: int, dtype: type[np.floating]
) -> None:
    one = case(1300, window, 100, heads, dtype=dtype)
    cuts = range(100, 1300, 100)
    assert_close(one.run(*cuts), one.expected(), ATTENTION)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 700])
def test_sinks_without_a_window(isa: str, tokens: int) -> None:
    one = case(tokens, 0, tokens)
    assert_close(one.run(), one.expected(), ATTENTION)


def test_a_window_that_reaches_the_start_changes_no_bit(isa: str) -> None:
    wide, whole = case(300, 300, 300, sinks=False), case(300, 0, 300, sinks=False)
    np.testing.assert_array_equal(wide.run(), whole.run())


@pytest.mark.parametrize("window", WINDOWS)
def test_prefill_equals_token_by_token_for_any_thread_count(isa: str, window: int) -> None:
    one = case(1100, window, 550, (10, 2), 24)
    alone = one.run(*range(1, 1100), threads=1)
    for threads in (*THREADS, 16):
        np.testing.assert_array_equal(one.run(550, threads=threads), alone)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    window=st.integers(0, 200),
    cuts=st.lists(st.integers(1, 699), max_size=6, unique=True).map(sorted),
    group=st.integers(1, 9),
)
def test_result_does_not_depend_on_cuts_or_on_the_size_of_the_ring(
    isa: str, window: int, cuts: list[int], group: int
) -> None:
    heads = (2 * group, 2)
    whole = case(700, window, 700, heads, dtype=np.float16)
    longest = max(b - a for a, b in zip((0, *cuts), (*cuts, 700), strict=True))
    tight = case(700, window, longest, heads, dtype=np.float16)
    np.testing.assert_array_equal(tight.run(*cuts, threads=5), whole.run())


def test_what_lies_outside_of_the_window_leaves_no_trace(isa: str) -> None:
    one = case(200, 30, 200)
    before = one.run()
    one.k[:50], one.v[:50] = np.nan, np.inf
    np.testing.assert_array_equal(one.run()[79:], before[79:])
    assert np.isnan(one.run()[:79]).all()


@pytest.mark.parametrize("score", [-1e4, 200.0, 1e4])
def test_sinks_of_any_size(isa: str, score: float) -> None:
    one = case(70, 0, 70)
    assert one.sinks is not None
    one.sinks[:] = score
    expected = case(70, 0, 70, sinks=False).run() if score < 0 else np.zeros_like(one.q)
    np.testing.assert_allclose(one.run(), expected, atol=1e-30)


def test_what_does_not_fit_a_ring_is_refused() -> None:
    pool, q, cache = _native.Pool(1), unwritten(40, 4, 8), unwritten(2, 64, 8)
    kv, odd, sinks = unwritten(40, 2, 8), unwritten(2, 65, 8), unwritten(3)
    with pytest.raises(ValueError, match=r"\[kv_store\] tokens: expected at most 35, got 40"):
        _native.kv_store(pool, kv, kv, cache, cache, 0, 30)
    with pytest.raises(ValueError, match=r"\[attention\] context: .*multiple of 64, got 65"):
        _native.attention(pool, q, odd, odd, 0, 1.0, unwritten(40, 4, 8), 20)
    with pytest.raises(ValueError, match=r"\[attention\] window: expected 0 or more, got -1"):
        _native.attention(pool, q, cache, cache, 0, 1.0, unwritten(40, 4, 8), -1)
    with pytest.raises(ValueError, match=r"\[attention\] sinks: expected float32 \[4\]"):
        _native.attention(pool, q, cache, cache, 0, 1.0, unwritten(40, 4, 8), 0, sinks)
