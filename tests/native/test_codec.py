"""encode, dequantize and embed: bit for bit what the NumPy formats do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes, Floats, from_bf16
from tests.support.matrices import ALL_FORMATS, format_id, random_stored, unwritten

POOL = _native.Pool(2)
LARGEST = 2.0**126  # beyond it, the range of a q4 group may be infinite

formats = pytest.mark.parametrize("fmt", ALL_FORMATS, ids=format_id)


def encode(fmt: Format, w: NDArray[np.generic], dtype: str = "f32") -> Bytes:
    """The native encoding of w [rows, cols], given as dtype."""
    out = np.full(fmt.nbytes(*w.shape), 0xA5, dtype=np.uint8)
    raw = np.ascontiguousarray(w).reshape(-1).view(np.uint8)
    _native.encode(POOL, fmt.name, fmt.group, raw, dtype, *w.shape, out)
    return out


def largest(fmt: Format) -> float:
    """The largest magnitude that a format is sure to hold."""
    return 128.0 if fmt.name in ("q2", "q3", "q4n", "q5") else LARGEST


def floats(bound: float) -> st.SearchStrategy[float]:
    return st.floats(-bound, bound, width=32, allow_subnormal=True)


def matrices(cols: int, most: float = LARGEST) -> st.SearchStrategy[Floats]:
    """[rows, cols] of one magnitude each: huge, ordinary, tiny or denormal."""
    shapes = st.tuples(st.sampled_from([1, 3, 8, 9]), st.just(cols))
    bounds = st.sampled_from([most, 1.0, 2.0**-100, 2.0**-130, 2.0**-145])
    return bounds.flatmap(lambda b: arrays.arrays(np.float32, shapes, elements=floats(b)))


@formats
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one ISA serves all examples
)
@given(data=st.data())
def test_encode_is_bit_identical(isa: str, fmt: Format, data: st.DataObject) -> None:
    w = data.draw(matrices(fmt.group or 6, largest(fmt)))
    assert np.array_equal(encode(fmt, w), fmt.encode(w))


@formats
@pytest.mark.parametrize("shape", [(1, 128), (7, 256), (21, 384), (70, 1280)], ids=str)
def test_encode_and_dequantize_match_on_ordinary_weights(
    isa: str, fmt: Format, shape: tuple[int, int]
) -> None:
    matrix = random_stored(np.random.default_rng(21), fmt, *shape)
    w = np.random.default_rng(22).standard_normal(shape).astype(np.float32)
    assert np.array_equal(encode(fmt, w), fmt.encode(w))
    decoded = unwritten(*shape)
    _native.dequantize(POOL, matrix.native, decoded)
    assert np.array_equal(decoded, matrix.w)


@formats
def test_every_16_bit_weight_is_read_right(isa: str, fmt: Format) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 128)
    with np.errstate(invalid="ignore"):  # ARM flags a signalling NaN
        f16 = bits.view(np.float16).astype(np.float32)
    for dtype, values in [("f16", f16), ("bf16", from_bf16(bits))]:
        usable = np.where(np.abs(values) <= largest(fmt), bits, 0)
        meant = np.where(np.abs(values) <= largest(fmt), values, np.float32(0))
        assert np.array_equal(encode(fmt, usable, dtype), fmt.encode(meant))


def test_padding_rows_are_those_of_the_format() -> None:
    w = np.ones((9, 64), dtype=np.float32)
    padded = np.zeros((16, 64), dtype=np.float32)
    padded[:9] = w
    for fmt in (Format("q4", 64), Format("q8", 32), Format("bf16")):
        assert np.array_equal(encode(fmt, w), encode(fmt, padded))


@formats
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_non_finite_weight_is_named(isa: str, fmt: Format, bad: float, dtype: str) -> None:
    w = np.zeros((30, 256), dtype=np.float32)
    w[17, 201] = w[17, 203] = w[29, 0] = bad
    source = {
        "f32": w,
        "f16": w.astype(np.float16),
        "bf16": (w.view(np.uint32) >> 16).astype(np.uint16),
    }
    out = np.full(fmt.nbytes(30, 256), 0xA5, dtype=np.uint8)
    raw = source[dtype].reshape(-1).view(np.uint8)
    message = r"\[encode\] weight at row 17, column 201 is not finite"
    with pytest.raises(ValueError, match=message):
        _native.encode(POOL, fmt.name, fmt.group, raw, dtype, 30, 256, out)
    assert np.all(out == 0xA5)


@pytest.mark.parametrize(
    ("fmt", "fits", "too_large"),
    [(Format("q4", 64), 2.0**126, 2.0**126 * 1.0001), (Format("bf16"), 3.3895e38, 3.4e38)],
    ids=["q4", "bf16"],
)
def test_a_weight_that_would_be_stored_as_infinity_is_named(
    fmt: Format, fits: float, too_large: float
) -> None:
    w = np.zeros((3, 64), dtype=np.float32)
    w[2, 5], w[1, 5] = fits, -fits
    assert np.array_equal(encode(fmt, w), fmt.encode(w))
    w[2, 5] = too_large
    with pytest.raises(ValueError, match=rf"row 2, column 5 is too large for {fmt.name}"):
        encode(fmt, w)


@formats
def test_embed_gives_decoded_rows(fmt: Format) -> None:
    matrix = random_stored(np.random.default_rng(23), fmt, 21, 256)
    ids = np.array([20, 0, 7, 8, 8], dtype=np.int32)
    out = unwritten(5, 256)
    _native.embed(POOL, matrix.native, ids, out)
    assert np.array_equal(out, matrix.w[ids])


def test_embed_refuses_ids_outside_the_table() -> None:
    matrix = random_stored(np.random.default_rng(24), Format("bf16"), 21, 64)
    for bad in (21, -1):
        out = unwritten(2, 64)
        with pytest.raises(ValueError, match=rf"\[embed\] ids\[1\]: expected 0 to 20, got {bad}"):
            _native.embed(POOL, matrix.native, np.array([0, bad], dtype=np.int32), out)
        assert np.isnan(out).all()


def test_wrong_sizes_are_refused() -> None:
    matrix = random_stored(np.random.default_rng(25), Format("bf16"), 21, 64).native
    ids = np.zeros(3, dtype=np.int32)
    for call, message in [
        (lambda: _native.embed(POOL, matrix, ids, unwritten(2, 64)), "out rows: expected 3, got 2"),
        (
            lambda: _native.embed(POOL, matrix, ids, unwritten(3, 65)),
            "out columns: expected 64, got 65",
        ),
        (
            lambda: _native.dequantize(POOL, matrix, unwritten(20, 64)),
            "out rows: expected 21, got 20",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("dtype", "source", "out", "message"),
    [
        ("f64", 512, 256, "unknown source dtype 'f64'"),
        ("f32", 511, 256, "source bytes: expected 512, got 511"),
        ("f32", 512, 255, "out bytes: expected 1024, got 255"),
    ],
)
def test_encode_checks_its_buffers(dtype: str, source: int, out: int, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\[encode\] {message}"):
        _native.encode(
            POOL, "bf16", 0, np.zeros(source, np.uint8), dtype, 2, 64, np.zeros(out, np.uint8)
        )
