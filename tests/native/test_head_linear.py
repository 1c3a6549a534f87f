"""head_linear: a map per head, against float64 NumPy and against one `linear` per head."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.ops import reference_linear as reference
from flashmoe.quant import Format
from tests.support.arrays import THREADS, Floats, normal
from tests.support.matrices import ALL_FORMATS, Stored, format_id, random_stored, unwritten
from tests.support.tolerances import DOT

formats = pytest.mark.parametrize("fmt", ALL_FORMATS, ids=format_id)
HEADS, COLS = 3, 128


def apply(x: Floats, matrix: Stored, threads: int = 2, out: Floats | None = None) -> Floats:
    pool, acts = _native.Pool(threads), _native.Activations()
    acts.assign(pool, x.reshape(-1, x.shape[2]), matrix.native.group)
    if out is None:
        out = unwritten(*x.shape[:2], matrix.native.rows // x.shape[1])
    _native.head_linear(pool, acts, matrix.native, out)
    return out


@formats
@pytest.mark.parametrize("rows", [8, 24])
def test_matches_the_reference(isa: str, fmt: Format, rows: int) -> None:
    rng = np.random.default_rng(1)
    matrix = random_stored(rng, fmt, HEADS * rows, COLS)
    for tokens in (1, 2, 7, 65):
        x = normal(rng, tokens, HEADS, COLS)
        expected = reference.head_linear(x, matrix.w, fmt.group)
        sizes = reference.head_linear(np.abs(x), np.abs(matrix.w), 0)
        assert np.all(np.abs(apply(x, matrix) - expected) <= DOT * sizes)


@formats
def test_each_head_is_a_linear_of_its_own(isa: str, fmt: Format) -> None:
    rng = np.random.default_rng(2)
    matrix, x = random_stored(rng, fmt, HEADS * 16, COLS), normal(rng, 9, HEADS, COLS)
    whole, block = apply(x, matrix), matrix.data.size // HEADS
    for head in range(HEADS):
        data = matrix.data[head * block : (head + 1) * block]
        one = _native.Matrix(fmt.name, fmt.group, 16, COLS, data)
        pool, acts, out = _native.Pool(1), _native.Activations(), unwritten(9, 16)
        rows = np.ascontiguousarray(x[:, head])
        acts.assign(pool, rows, fmt.group)
        _native.linear(pool, acts, [one], [out])
        np.testing.assert_array_equal(whole[:, head], out)


@formats
def test_no_bit_depends_on_the_other_tokens_or_on_threads(isa: str, fmt: Format) -> None:
    rng = np.random.default_rng(3)
    matrix, x = random_stored(rng, fmt, HEADS * 64, COLS), normal(rng, 130, HEADS, COLS)
    whole = apply(x, matrix)
    for threads in THREADS:
        np.testing.assert_array_equal(apply(x, matrix, threads), whole)
    for t in (0, 63, 64, 129):
        np.testing.assert_array_equal(apply(x[t : t + 1], matrix)[0], whole[t])


def test_writes_into_a_part_of_wider_rows(isa: str) -> None:
    rng = np.random.default_rng(4)
    matrix, x = random_stored(rng, Format("bf16"), HEADS * 16, COLS), normal(rng, 5, HEADS, COLS)
    wide = unwritten(5, HEADS, 20)
    apply(x, matrix, out=wide[..., :16])
    np.testing.assert_array_equal(wide[..., :16], apply(x, matrix))
    assert np.isnan(wide[..., 16:]).all()


def test_wrong_arrays_are_refused() -> None:
    rng = np.random.default_rng(5)
    matrix, x = random_stored(rng, Format("bf16"), 24, COLS), normal(rng, 2, HEADS, COLS)
    with pytest.raises(ValueError, match=r"out columns: expected a multiple of 8, got 12"):
        apply(x, matrix, out=unwritten(2, 2, 12))
    with pytest.raises(ValueError, match=r"matrix rows: expected 48, got 24"):
        apply(x, matrix, out=unwritten(2, HEADS, 16))
    with pytest.raises(ValueError, match=r"rows of x: expected 9, got 6"):
        apply(x, matrix, out=unwritten(3, HEADS, 8))
