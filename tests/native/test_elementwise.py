"""sigmoid_gate and causal_conv_silu against float64 twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import ROW, SIGMOID_TAIL


def gate_with(x: Floats, gate: Floats, threads: int = 2) -> Floats:
    out = x.copy()
    _native.sigmoid_gate(_native.Pool(threads), out, gate)
    return out


def convolve(u: Floats, weight: Floats, state: Floats, threads: int = 2) -> tuple[Floats, Floats]:
    out, carried = unwritten(*u.shape), state.copy()
    _native.causal_conv_silu(_native.Pool(threads), u, weight, carried, out)
    return out, carried


@pytest.mark.parametrize("dim", [1, 7, 8, 64, 80, 257])
def test_sigmoid_gate_matches_the_reference(isa: str, dim: int) -> None:
    rng = np.random.default_rng(1)
    x, gate = normal(rng, 3, 4, dim), normal(rng, 3, 4, dim, scale=5)
    assert_close(gate_with(x, gate), reference.sigmoid_gate(x, gate), ROW)


def test_sigmoid_gate_at_the_ends_of_the_range(isa: str) -> None:
    gate = np.array([-np.inf, -1e30, -104, -88, 0, 88, 1e30, np.inf, np.nan], dtype=np.float32)
    got = gate_with(np.ones((1, 1, 9), dtype=np.float32), gate[None, None])[0, 0]
    expected = [0, 0, np.exp(-104.0), np.exp(-88.0), 0.5, 1, 1, 1, np.nan]
    np.testing.assert_allclose(got, expected, rtol=SIGMOID_TAIL, atol=1e-38)


def test_sigmoid_gate_reads_gates_that_lie_beside_their_queries(isa: str) -> None:
    rng = np.random.default_rng(2)
    x, both = normal(rng, 65, 3, 70), normal(rng, 65, 3, 140)
    expected = gate_with(x, both[:, :, 70:].copy(), threads=1)
    for threads in THREADS:
        np.testing.assert_array_equal(gate_with(x, both[:, :, 70:], threads), expected)


@pytest.mark.parametrize("channels", [1, 8, 70, 255, 256, 257, 700])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_conv_matches_the_reference(isa: str, width: int, channels: int) -> None:
    rng = np.random.default_rng(3)
    weight, state = normal(rng, channels, width), normal(rng, width - 1, channels)
    for tokens in (1, 2, 3, 7, 64, 65):
        u = normal(rng, tokens, channels)
        got, carried = convolve(u, weight, state)
        expected, newest = reference.causal_conv_silu(u, weight, state)
        assert_close(got, expected, ROW)
        np.testing.assert_array_equal(carried, newest)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), width=st.integers(2, 8), tokens=st.integers(0, 20))
def test_conv_does_not_depend_on_where_a_prompt_is_cut(
    isa: str, data: st.DataObject, width: int, tokens: int
) -> None:
    rng = np.random.default_rng(4)
    u, weight = normal(rng, tokens, 9), normal(rng, 9, width)
    state = normal(rng, width - 1, 9)
    whole, final = convolve(u, weight, state)
    cut = data.draw(st.integers(0, tokens))
    first, state = convolve(u[:cut], weight, state)
    second, state = convolve(u[cut:], weight, state)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(state, final)


def test_conv_does_not_depend_on_threads(isa: str) -> None:
    rng = np.random.default_rng(5)
    u, weight, state = normal(rng, 70, 3000), normal(rng, 3000, 4), normal(rng, 3, 3000)
    expected, final = convolve(u, weight, state, threads=1)
    for threads in THREADS:
        got, carried = convolve(u, weight, state, threads)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(carried, final)


def test_wrong_arrays_are_refused() -> None:
    pool, u, out = _native.Pool(1), unwritten(2, 8), unwritten(2, 8)
    with pytest.raises(ValueError, match=r"state: expected float32 \[3, 8\], got float32 \[2, 8\]"):
        _native.causal_conv_silu(pool, u, unwritten(8, 4), unwritten(2, 8), out)
    with pytest.raises(ValueError, match=r"\[causal_conv_silu\] weight: expected 2 to 8 taps"):
        _native.causal_conv_silu(pool, u, unwritten(8, 9), unwritten(8, 8), out)
    with pytest.raises(ValueError, match=r"out: expected an array other than u"):
        _native.causal_conv_silu(pool, u, unwritten(8, 4), unwritten(3, 8), u)
    with pytest.raises(ValueError, match=r"\[sigmoid_gate\] gate: expected float32 \[1, 2, 8\]"):
        _native.sigmoid_gate(pool, unwritten(1, 2, 8), unwritten(1, 2, 9))
