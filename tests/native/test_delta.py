"""gated_delta, both forms, against the float64 twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe import _native
from flashmoe.ops import reference_layers as reference
from tests.support.arrays import THREADS, Floats, assert_close, normal, unwritten
from tests.support.tolerances import DELTA

CHUNK = 64
chunks = pytest.mark.parametrize("chunk", [0, CHUNK], ids=["recurrent", "chunked"])


@dataclass(frozen=True)
class Case:
    """Inputs of one call; state [Hv, Dk, Dv] is not written to."""

    qkv: Floats
    a: Floats
    b: Floats
    a_log: Floats
    dt_bias: Floats
    state: Floats
    key_heads: int

    def run(self, chunk: int, threads: int = 2) -> tuple[Floats, Floats]:
        """Output and new state."""
        state = self.state.copy()
        out = unwritten(len(self.qkv), state.shape[0], state.shape[2])
        gates = (self.a, self.b, self.a_log, self.dt_bias)
        _native.gated_delta(_native.Pool(threads), self.qkv, *gates, state, out, chunk)
        return out, state

    def part(self, first: int, end: int, state: Floats) -> Case:
        """The tokens first..end, starting from another state."""
        rows = slice(first, end)
        return replace(self, qkv=self.qkv[rows], a=self.a[rows], b=self.b[rows], state=state)

    def check(self, chunk: int) -> None:
        got, state = self.run(chunk)
        expected, carried = reference.gated_delta(
            self.qkv, self.a, self.b, self.a_log, self.dt_bias, self.state, self.key_heads
        )
        assert_close(got, expected, DELTA)
        assert_close(state, carried, DELTA)


def case(
    tokens: int, heads: tuple[int, int] = (2, 4), dims: tuple[int, int] = (32, 40), seed: int = 1
) -> Case:
    rng = np.random.default_rng(seed)
    (key_heads, value_heads), (key_dim, value_dim) = heads, dims
    return Case(
        qkv=normal(rng, tokens, 2 * key_heads * key_dim + value_heads * value_dim),
        a=normal(rng, tokens, value_heads),
        b=normal(rng, tokens, value_heads),
        a_log=np.log(rng.uniform(0.05, 4, value_heads)).astype(np.float32),
        dt_bias=normal(rng, value_heads),
        state=normal(rng, value_heads, key_dim, value_dim, scale=0.3),
        key_heads=key_heads,
    )


@chunks
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 63, 64, 65, 130])
def test_matches_the_reference(isa: str, tokens: int, chunk: int) -> None:
    case(tokens).check(chunk)


@chunks
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (8, 16), (20, 33), (5, 3)], ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (1, 3)], ids=str)
def test_matches_the_reference_for_any_dims(
    isa: str, heads: tuple[int, int], dims: tuple[int, int], chunk: int
) -> None:
    case(70, heads, dims).check(chunk)


@pytest.mark.parametrize("chunk", [1, 5, 8, 16, 100, 128])
def test_other_chunk_lengths_match_too(isa: str, chunk: int) -> None:
    case(131).check(chunk)


@chunks
def test_extreme_decays(isa: str, chunk: int) -> None:
    one = case(130)
    one.a[:20] += 60  # state wiped out at once: sums of log decays in the thousands,
    one.a[20:64] -= 3  # whose small differences then matter
    one.a[64:90] -= 60  # no decay at all
    one.b[::3] += 100
    one.b[1::3] -= 100
    one.check(chunk)


@chunks
def test_result_does_not_depend_on_threads(isa: str, chunk: int) -> None:
    one = case(130, heads=(2, 6))
    expected, carried = one.run(chunk, threads=1)
    for threads in THREADS:
        got, state = one.run(chunk, threads)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(state, carried)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tokens=st.integers(0, 40), data=st.data())
def test_recurrent_form_is_bit_identical_over_any_cut(
    isa: str, tokens: int, data: st.DataObject
) -> None:
    one = case(tokens)
    cut = data.draw(st.integers(0, tokens))
    first, state = one.part(0, cut, one.state).run(0)
    second, state = one.part(cut, tokens, state).run(0)
    whole, final = one.run(0)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(state, final)


def test_chunked_form_is_bit_identical_over_cuts_between_chunks(isa: str) -> None:
    one = case(3 * CHUNK + 9)
    first, state = one.part(0, CHUNK, one.state).run(CHUNK)
    second, state = one.part(CHUNK, 3 * CHUNK + 9, state).run(CHUNK)
    whole, final = one.run(CHUNK)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(state, final)


@chunks
def test_a_prompt_and_then_decode_steps_match_the_reference(isa: str, chunk: int) -> None:
    one = case(80)
    outs, state = [], one.state
    for first, end, form in ((0, 75, chunk), (75, 76, 0), (76, 80, 0)):
        out, state = one.part(first, end, state).run(form)
        outs.append(out)
    expected, carried = reference.gated_delta(
        one.qkv, one.a, one.b, one.a_log, one.dt_bias, one.state, one.key_heads
    )
    assert_close(np.concatenate(outs), expected, DELTA)
    assert_close(state, carried, DELTA)


def test_wrong_arrays_are_refused() -> None:
    one = case(2)
    with pytest.raises(ValueError, match=r"\[gated_delta\] chunk: expected 0 to 128, got 129"):
        one.run(129)
    with pytest.raises(ValueError, match=r"\[gated_delta\] a: expected float32 \[2, 4\]"):
        replace(one, a=one.a[:1]).run(0)
    with pytest.raises(ValueError, match=r"\[gated_delta\] qkv: expected 2 \* Hk \* 32 \+ 160 col"):
        replace(one, qkv=unwritten(2, 289)).run(0)
    with pytest.raises(ValueError, match=r"\[gated_delta\] a_log: expected float32 \[4\]"):
        replace(one, a_log=unwritten(5)).run(0)
