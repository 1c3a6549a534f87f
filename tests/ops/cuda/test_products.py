"""Products with stored matrices against float64, at sizes beside every boundary of the tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe.quant import Format
from tests.support.tolerances import CUDA_BF16, CUDA_FIXED_POINT, CUDA_HALF, CUDA_ROW

pytestmark = pytest.mark.cuda

FORMATS = [Format("q4", 32), Format("q4", 64), Format("q4", 128), Format("q8", 64), Format("bf16")]
FORMATS += [Format("mxfp4", 32), Format("q2", 32), Format("q3", 32), Format("q3", 128)]
SHAPES = [(24, 256), (13, 640), (8, 128)]
TOKENS = [1, 3, 17, 20]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def host(x: Any) -> NDArray[Any]:
    values: NDArray[Any] = x.cpu().numpy()
    return values


def error(got: Any, expected: NDArray[Any]) -> float:
    """Relative to the largest result; NaN never passes a comparison with it."""
    return float(np.abs(host(got) - expected).max() / np.abs(expected).max())


def bound(fmt: Format, tokens: int) -> float:
    from flashmoe.ops.cuda.products import FEW_TOKENS

    if tokens <= FEW_TOKENS:
        return CUDA_FIXED_POINT if fmt.name == "q4" else CUDA_ROW
    return CUDA_HALF if fmt.group else CUDA_BF16


def stored(
    ops: Any, rng: np.random.Generator, fmt: Format, rows: int, cols: int
) -> tuple[Any, NDArray[np.float64]]:
    """A matrix of the backend, and the numbers that it means."""
    data = fmt.encode(rng.standard_normal((rows, cols)).astype(np.float32))
    return ops.matrix(fmt, rows, cols, data), fmt.decode(data, rows, cols).astype(np.float64)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_linear(
    ops: Any, rng: np.random.Generator, fmt: Format, shape: tuple[int, int], tokens: int
) -> None:
    matrix, w = stored(ops, rng, fmt, *shape)
    x = rng.standard_normal((tokens, shape[1])).astype(np.float32)
    (got,) = ops.linear(ops.vector(x), matrix)
    assert error(got, x.astype(np.float64) @ w.T) <= bound(fmt, tokens)


@pytest.mark.parametrize("tokens", TOKENS)
def test_blocks_that_begin_anywhere(ops: Any, rng: np.random.Generator, tokens: int) -> None:
    """Three groups of mxfp4 are 102 words: the next block begins at no multiple of 8."""
    fmt = Format("mxfp4", 32)
    matrix, w = stored(ops, rng, fmt, 37, 96)
    x = rng.standard_normal((tokens, 96)).astype(np.float32)
    (got,) = ops.linear(ops.vector(x), matrix)
    assert error(got, x.astype(np.float64) @ w.T) <= bound(fmt, tokens)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_norm_is_part_of_the_product(
    ops: Any, rng: np.random.Generator, fmt: Format, tokens: int
) -> None:
    matrix, w = stored(ops, rng, fmt, 24, 256)
    x = rng.standard_normal((tokens, 256)).astype(np.float32)
    norm = rng.standard_normal(256).astype(np.float32)
    (got,) = ops.linear(ops.rms_norm(ops.vector(x), ops.vector(norm), 1e-6), matrix)
    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * norm
    assert error(got, normed @ w.T) <= bound(fmt, tokens)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_linear_add_adds(ops: Any, rng: np.random.Generator, fmt: Format, tokens: int) -> None:
    matrix, w = stored(ops, rng, fmt, 13, 256)
    x = rng.standard_normal((tokens, 256)).astype(np.float32)
    out = ops.vector(np.ones((tokens, 13), np.float32))
    ops.linear_add(ops.vector(x), matrix, out)
    assert error(out, 1 + x.astype(np.float64) @ w.T) <= bound(fmt, tokens)


def test_matrices_of_two_formats_in_one_call(ops: Any, rng: np.random.Generator) -> None:
    mixed = [(Format("q4", 64), 9), (Format("bf16"), 3), (Format("q4", 64), 16)]
    pairs = [stored(ops, rng, fmt, rows, 128) for fmt, rows in mixed]
    x = rng.standard_normal((2, 128)).astype(np.float32)
    results = ops.linear(ops.vector(x), *(matrix for matrix, _ in pairs))
    for got, (_, w) in zip(results, pairs, strict=True):
        assert error(got, x.astype(np.float64) @ w.T) <= CUDA_FIXED_POINT


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_embedding_rows_are_exact(ops: Any, rng: np.random.Generator, fmt: Format) -> None:
    matrix, w = stored(ops, rng, fmt, 13, 640)
    ids = np.array([12, 0, 3], dtype=np.int32)
    np.testing.assert_array_equal(host(ops.embed(matrix, ids)), w[ids].astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_stays_that(ops: Any, rng: np.random.Generator, bad: float) -> None:
    matrix, _ = stored(ops, rng, Format("q4", 64), 24, 256)
    x = rng.standard_normal((1, 256)).astype(np.float32)
    x[0, 77] = bad
    (got,) = ops.linear(ops.vector(x), matrix)
    assert not np.isfinite(host(got)).any()
