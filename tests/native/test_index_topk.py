"""index_topk against its twin: the keys that sparse attention looks at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, normal

Ints = NDArray[np.int32]


def chosen(
    q: Floats, weights: Floats, keys: NDArray[np.floating], seen: Ints, k: int, threads: int = 2
) -> Ints:
    ids = np.full((len(q), k), -7, dtype=np.int32)
    _native.index_topk(_native.Pool(threads), q, weights, keys, seen, ids)
    return ids


def exact_case(
    tokens: int, context: int, seed: int, dtype: type[np.floating] = np.float32
) -> tuple[Floats, Floats, NDArray[np.floating]]:
    """Small whole numbers: every score is exact in float32, and many are equal."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-3, 4, (tokens, 4, 32)).astype(np.float32)
    weights = rng.integers(-2, 3, (tokens, 4)).astype(np.float32)
    return q, weights, rng.integers(-3, 4, (context, 32)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.integers(1, 90), st.integers(0, 2**31))
def test_matches_the_reference(
    isa: str, dtype: type[np.floating], tokens: int, context: int, k: int, seed: int
) -> None:
    q, weights, keys = exact_case(tokens, context, seed, dtype)
    seen = np.random.default_rng(seed).integers(0, context + 1, tokens).astype(np.int32)
    expected = reference.index_topk(q, weights, keys, seen, k)
    np.testing.assert_array_equal(chosen(q, weights, keys, seen, k), expected)


def test_random_scores_match_but_for_near_ties(isa: str) -> None:
    """A key that one side chose and the other did not is as good as the worst chosen one."""
    rng = np.random.default_rng(3)
    q, weights, keys = normal(rng, 5, 32, 64), normal(rng, 5, 32), normal(rng, 700, 64)
    seen = np.array([700, 650, 300, 65, 64], dtype=np.int32)
    got = chosen(q, weights, keys, seen, 64)
    expected = reference.index_topk(q, weights, keys, seen, 64)
    assert np.mean(got == expected) > 0.95
    for row in range(5):
        assert len({*got[row].tolist()} ^ {*expected[row].tolist()}) <= 2


@pytest.mark.parametrize("threads", THREADS)
def test_a_row_does_not_depend_on_others_or_on_threads(isa: str, threads: int) -> None:
    rng = np.random.default_rng(4)
    q, weights, keys = normal(rng, 40, 8, 64), normal(rng, 40, 8), normal(rng, 300, 64)
    seen = np.arange(261, 301, dtype=np.int32)
    together = chosen(q, weights, keys, seen, 50)
    np.testing.assert_array_equal(chosen(q, weights, keys, seen, 50, threads), together)
    for row in (0, 17, 39):
        one = slice(row, row + 1)
        alone = chosen(q[one], weights[one], keys, seen[one], 50, threads)
        np.testing.assert_array_equal(alone, together[one])


def test_what_is_not_a_number_comes_last(isa: str) -> None:
    q, weights, keys = exact_case(1, 100, 5)
    keys[10:20] = np.nan
    got = chosen(q, weights, keys, np.array([100], dtype=np.int32), 90)
    assert not {*range(10, 20)} & {*got[0].tolist()}


def test_keys_that_are_not_there_are_refused() -> None:
    q, weights, keys = exact_case(2, 8, 6)
    with pytest.raises(ValueError, match=r"\[index_topk\] seen\[1\]: expected 0 to 8, got 9"):
        chosen(q, weights, keys, np.array([8, 9], dtype=np.int32), 4)
