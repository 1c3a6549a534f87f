"""rms_norm and gated_rms_norm against float64 twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import ROW, SIGMOID_TAIL

EPS = 1e-6
WIDTHS = [1, 7, 8, 9, 31, 32, 33, 64, 80, 256, 2049]


def rms_norm(x: Floats, weight: Floats, threads: int = 2, eps: float = EPS) -> Floats:
    out = unwritten(*x.shape)
    _native.rms_norm(_native.Pool(threads), x, weight, eps, out)
    return out


def gated(x: Floats, gate: Floats, weight: Floats, threads: int = 2) -> Floats:
    out = x.copy()
    _native.gated_rms_norm(_native.Pool(threads), out, gate, weight, EPS)
    return out


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_matches_the_reference(isa: str, width: int) -> None:
    rng = np.random.default_rng(1)
    x, weight = normal(rng, 5, width, scale=3), normal(rng, width)
    assert_close(rms_norm(x, weight), reference.rms_norm(x, weight, EPS), ROW)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(0, 9), width=st.integers(1, 300), log_scale=st.integers(-12, 12))
def test_rms_norm_at_any_scale(isa: str, rows: int, width: int, log_scale: int) -> None:
    rng = np.random.default_rng(rows * 1000 + width)
    x, weight = normal(rng, rows, width, scale=10.0**log_scale), normal(rng, width)
    assert_close(rms_norm(x, weight), reference.rms_norm(x, weight, EPS), ROW)


def test_rms_norm_of_zeros_is_zero(isa: str) -> None:
    x = np.zeros((2, 24), dtype=np.float32)
    assert not rms_norm(x, np.ones(24, dtype=np.float32)).any()


def test_rms_norm_may_write_over_its_input(isa: str) -> None:
    rng = np.random.default_rng(2)
    x, weight = normal(rng, 3, 70), normal(rng, 70)
    expected = rms_norm(x, weight)
    _native.rms_norm(_native.Pool(1), x, weight, EPS, x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("width", WIDTHS)
def test_gated_rms_norm_matches_the_reference(isa: str, width: int) -> None:
    rng = np.random.default_rng(3)
    x, gate, weight = normal(rng, 5, width), normal(rng, 5, width, scale=4), normal(rng, width)
    expected = reference.gated_rms_norm(x, gate, weight, EPS)
    assert_close(gated(x, gate, weight), expected, ROW)


def test_gated_rms_norm_survives_large_gates(isa: str) -> None:
    gate = np.array([[-1e4, -100, -88, 0, 88, 100, 1e4, -0.0]], dtype=np.float32)
    x, weight = np.ones_like(gate), np.ones(8, dtype=np.float32)
    expected = reference.gated_rms_norm(x, gate, weight, EPS)
    np.testing.assert_allclose(gated(x, gate, weight), expected, rtol=SIGMOID_TAIL, atol=1e-30)


def test_rows_do_not_depend_on_each_other_or_on_threads(isa: str) -> None:
    rng = np.random.default_rng(4)
    x, gate, weight = normal(rng, 65, 1030), normal(rng, 65, 1030), normal(rng, 1030)
    normed = np.concatenate([rms_norm(row[None], weight) for row in x])
    mixed = np.concatenate([gated(x[i : i + 1], gate[i : i + 1], weight) for i in range(len(x))])
    for threads in THREADS:
        np.testing.assert_array_equal(rms_norm(x, weight, threads), normed)
        np.testing.assert_array_equal(gated(x, gate, weight, threads), mixed)


def test_wrong_arrays_are_refused() -> None:
    pool, x, out = _native.Pool(1), unwritten(2, 8), unwritten(2, 8)
    weight = unwritten(7)
    with pytest.raises(
        ValueError, match=r"\[rms_norm\] weight: expected float32 \[8\], got float32 \[7\]"
    ):
        _native.rms_norm(pool, x, weight, EPS, out)
    with pytest.raises(ValueError, match=r"\[rms_norm\] x: expected float32 \[any, any\], got"):
        _native.rms_norm(pool, x.astype(np.float64), unwritten(8), EPS, out)
    with pytest.raises(ValueError, match=r"\[rms_norm\] x: expected stride 8 in dimension 0"):
        _native.rms_norm(pool, unwritten(2, 16)[:, :8], unwritten(8), EPS, out)
    with pytest.raises(ValueError, match=r"\[gated_rms_norm\] gate: expected float32 \[2, 8\]"):
        _native.gated_rms_norm(pool, x, unwritten(3, 8), unwritten(8), EPS)
