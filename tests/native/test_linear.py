"""linear() and Activations: against float64 NumPy, and bit-identical for any T and thread count."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.ops import reference_linear as reference
from flashmoe.quant import Format
from flashmoe.quant.layout import Floats
from tests.support.matrices import (
    ALL_FORMATS,
    Stored,
    format_id,
    random_stored,
    stored,
    unwritten,
)
from tests.support.tolerances import DOT

SHAPES = [(1, 128), (7, 256), (8, 384), (9, 128), (21, 640)]
TOKENS = [1, 2, 3, 4, 5, 7, 33, 65]

formats = pytest.mark.parametrize("fmt", ALL_FORMATS, ids=format_id)


def multiply(
    x: Floats, *matrices: Stored, threads: int = 2, outs: list[Floats] | None = None
) -> list[Floats]:
    """x @ w.T for each matrix; with outs: added to them."""
    pool, acts = _native.Pool(threads), _native.Activations()
    acts.assign(pool, x, matrices[0].native.group)
    accumulate = outs is not None
    outs = outs or [unwritten(len(x), m.native.rows) for m in matrices]
    _native.linear(pool, acts, [m.native for m in matrices], outs, accumulate=accumulate)
    return outs


def dot_bound(x: Floats, w: Floats) -> Floats:
    """Allowed error of x @ w.T per element."""
    return DOT * (np.abs(x) @ np.abs(w).T) + 1e-30


@formats
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(isa: str, fmt: Format, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    matrix = random_stored(rng, fmt, *shape)
    for tokens in TOKENS:
        x = rng.standard_normal((tokens, shape[1])).astype(np.float32)
        (y,) = multiply(x, matrix)
        expected = reference.linear(x, matrix.w, fmt.group)
        assert np.all(np.abs(y - expected) <= dot_bound(x, matrix.w))


@formats
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(isa: str, fmt: Format) -> None:
    rng = np.random.default_rng(2)
    matrix = random_stored(rng, fmt, 53, 256)
    x = rng.standard_normal((70, 256)).astype(np.float32)
    (together,) = multiply(x, matrix, threads=1)
    for threads in (2, 5):
        assert np.array_equal(multiply(x, matrix, threads=threads)[0], together)
    for size in (1, 2, 3, 4, 5, 8, 16, 23):
        parts = [multiply(x[i : i + size], matrix)[0] for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate(parts), together)


def test_several_matrices_in_one_call_are_each_as_alone(isa: str) -> None:
    rng = np.random.default_rng(3)
    kinds = [Format("q4", 64), Format("bf16"), Format("q8", 64)]
    matrices = [
        random_stored(rng, f, rows, 192) for f, rows in zip(kinds, (24, 5, 17), strict=True)
    ]
    x = rng.standard_normal((6, 192)).astype(np.float32)
    for matrix, y in zip(matrices, multiply(x, *matrices), strict=True):
        assert np.array_equal(y, multiply(x, matrix)[0])


@formats
def test_accumulate_adds_the_product_to_the_output(isa: str, fmt: Format) -> None:
    rng = np.random.default_rng(4)
    matrix = random_stored(rng, fmt, 21, 128)
    x = rng.standard_normal((5, 128)).astype(np.float32)
    before = rng.standard_normal((5, 21)).astype(np.float32)
    (after,) = multiply(x, matrix, outs=[before.copy()])
    assert np.array_equal(after, before + multiply(x, matrix)[0])


@pytest.mark.parametrize("fmt", ALL_FORMATS[1:], ids=format_id)
def test_extreme_codes_do_not_overflow_the_integer_sums(isa: str, fmt: Format) -> None:
    sign = np.where(np.arange(256) % 2, 1, -1).astype(np.float32)
    w = np.stack([np.full(256, 127.0), sign * 127, np.where(sign > 0, 15, 0)]).astype(np.float32)
    w[0, :: fmt.group] = 0  # so that code 15 of q4 is met beside code 0
    matrix = stored(fmt, w)
    x = np.stack([np.full(256, 127.0), np.full(256, -127.0), sign * 127]).astype(np.float32)
    (y,) = multiply(x, matrix)
    assert np.all(np.abs(y - x.astype(np.float64) @ matrix.w.T) <= dot_bound(x, matrix.w))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_quantised_activations_are_those_of_the_reference(isa: str, group: int) -> None:
    # A q8 identity shows one quantised activation per output, exactly.
    rng = np.random.default_rng(5)
    magnitudes = 10.0 ** rng.integers(-44, 30, (40, 256 // group, 1))
    x = (rng.standard_normal((40, 256 // group, group)) * magnitudes).astype(np.float32)
    x[3, 0], x[4, 0, 1:] = 0, 0
    x = x.reshape(40, 256)
    identity = stored(Format("q8", group), 127 * np.eye(256, dtype=np.float32))
    (y,) = multiply(x, identity)
    codes, scales = reference.quantize_rows(x, group)
    step = np.float32(1) * np.repeat(scales, group, axis=1)
    assert np.array_equal(y, step * (codes.astype(np.float32) * 127))


@formats
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_activations_show_in_their_row_only(isa: str, fmt: Format, bad: float) -> None:
    matrix = random_stored(np.random.default_rng(6), fmt, 9, 128)
    x = np.ones((3, 128), dtype=np.float32)
    x[1, 77] = bad
    (y,) = multiply(x, matrix)
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()


def test_a_workspace_serves_large_small_and_empty_inputs(isa: str) -> None:
    rng = np.random.default_rng(7)
    pool, acts = _native.Pool(2), _native.Activations()
    for tokens, cols in [(40, 512), (2, 128), (0, 256), (41, 256)]:
        matrix = random_stored(rng, Format("q4", 64), 16, cols)
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        y = unwritten(tokens, 16)
        acts.assign(pool, x, 64)
        _native.linear(pool, acts, [matrix.native], [y])
        assert np.array_equal(y, multiply(x, matrix)[0])


def test_matrix_and_input_outlive_their_python_names() -> None:
    rng = np.random.default_rng(8)
    matrix = random_stored(rng, Format("q8", 32), 8, 128)
    x = rng.standard_normal((1, 128)).astype(np.float32)
    (expected,) = multiply(x, matrix)
    pool, acts, y = _native.Pool(1), _native.Activations(), unwritten(1, 8)
    acts.assign(pool, x.copy(), 32)
    native = _native.Matrix("q8", 32, 8, 128, matrix.data.copy())
    np.full(matrix.data.size, 255, np.uint8)  # takes the freed memory, had it been freed
    _native.linear(pool, acts, [native], [y])
    assert np.array_equal(y, expected)


class TestRefusals:
    """Each broken rule is a ValueError with operation and both numbers; nothing is written."""

    def refuse(self, message: str, x: Floats, group: int, fmt: Format, *shape: int) -> None:
        matrix = random_stored(np.random.default_rng(9), fmt, 16, 128)
        pool, acts, y = _native.Pool(1), _native.Activations(), unwritten(*shape)
        acts.assign(pool, x, group)
        with pytest.raises(ValueError, match=message):
            _native.linear(pool, acts, [matrix.native, matrix.native], [y, y])
        assert np.isnan(y).all()

    def test_columns(self) -> None:
        x = np.ones((2, 64), dtype=np.float32)
        message = r"\[linear\] matrix columns: expected 64, got 128"
        self.refuse(message, x, 64, Format("q4", 64), 2, 16)

    def test_group(self) -> None:
        x = np.ones((2, 128), dtype=np.float32)
        message = r"\[linear\] group of the activations: expected 32, got 64"
        self.refuse(message, x, 64, Format("q4", 32), 2, 16)
        message = r"\[linear\] group of the activations: expected 64, got 0"
        self.refuse(message, x, 0, Format("q8", 64), 2, 16)

    def test_output_shape(self) -> None:
        x = np.ones((2, 128), dtype=np.float32)
        fmt = Format("q4", 64)
        self.refuse(r"\[linear\] out rows: expected 2, got 3", x, 64, fmt, 3, 16)
        self.refuse(r"\[linear\] out columns: expected 16, got 17", x, 64, fmt, 2, 17)

    def test_number_of_outputs(self) -> None:
        pool, acts = _native.Pool(1), _native.Activations()
        acts.assign(pool, np.ones((1, 64), dtype=np.float32), 0)
        with pytest.raises(ValueError, match=r"\[linear\] outs: expected 0, got 1"):
            _native.linear(pool, acts, [], [unwritten(1, 1)])

    def test_nothing_assigned(self) -> None:
        matrix = random_stored(np.random.default_rng(9), Format("bf16"), 8, 64)
        with pytest.raises(ValueError, match=r"\[linear\] activations: nothing was assigned"):
            _native.linear(
                _native.Pool(1), _native.Activations(), [matrix.native], [unwritten(1, 8)]
            )

    def test_other_dtypes_and_strides_are_not_converted(self) -> None:
        matrix = random_stored(np.random.default_rng(9), Format("bf16"), 8, 64)
        pool, acts = _native.Pool(1), _native.Activations()
        for x in (np.ones((4, 64)), np.ones((4, 128), np.float32)[:, ::2]):
            with pytest.raises(TypeError):
                acts.assign(pool, x, 0)
        acts.assign(pool, np.ones((4, 64), dtype=np.float32), 0)
        for out in (np.ones((4, 8)), np.ones((4, 16), np.float32)[:, ::2]):
            with pytest.raises(TypeError):
                _native.linear(pool, acts, [matrix.native], [out])

    def test_assign(self) -> None:
        pool, acts = _native.Pool(1), _native.Activations()
        with pytest.raises(
            ValueError, match=r"\[assign\] columns: expected a multiple of 64, got 96"
        ):
            acts.assign(pool, np.ones((1, 96), dtype=np.float32), 64)
        with pytest.raises(
            ValueError, match=r"\[assign\] group: expected 0, 32, 64 or 128, got 48"
        ):
            acts.assign(pool, np.ones((1, 96), dtype=np.float32), 48)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("q7", 64, 8, 64, 1), "unknown format 'q7'"),
            (("q4", 16, 8, 64, 1), "q4 group: expected 32, 64 or 128, got 16"),
            (("bf16", 64, 8, 64, 1), "bf16 group: expected 0, got 64"),
            (("q4", 64, 0, 64, 1), "rows: expected 1 or more, below 2\\^31, got 0"),
            (("q4", 64, 1 << 40, 64, 1), "rows: expected 1 or more, below 2\\^31"),
            (("q8", 64, 8, 96, 1), "cols: expected a positive multiple of 64, got 96"),
            (("bf16", 0, 8, 3, 1), "cols: expected a positive multiple of 2, got 3"),
            (("q4", 64, 9, 64, 575), "data bytes: expected 576, got 575"),
        ],
    )
    def test_matrix(self, arguments: tuple[str, int, int, int, int], message: str) -> None:
        *shape, nbytes = arguments
        with pytest.raises(ValueError, match=rf"\[Matrix\] {message}"):
            _native.Matrix(*shape, np.zeros(nbytes, dtype=np.uint8))
