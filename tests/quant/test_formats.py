"""The NumPy weight formats: what they promise, tested without any kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flashmoe.errors import UsageError
from flashmoe.quant import Format, codebook, groups
from flashmoe.quant.layout import Floats, from_bf16, to_bf16
from tests.support.matrices import ALL_FORMATS, format_id

# Codebooks cannot hold zero and clip the largest weights: see test_codebook.py.
PLAIN = [fmt for fmt in ALL_FORMATS if fmt.name not in codebook.BOOKS]
formats = pytest.mark.parametrize("fmt", PLAIN, ids=format_id)
grouped = pytest.mark.parametrize("fmt", PLAIN[1:], ids=format_id)


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def round_trip(fmt: Format, w: Floats) -> Floats:
    return fmt.decode(fmt.encode(w), *w.shape)


def weights(cols: int) -> st.SearchStrategy[Floats]:
    shapes = st.tuples(st.sampled_from([1, 7, 8, 9]), st.just(cols))
    bounds = st.sampled_from([2.0**100, 1.0, 2.0**-60])
    elements = bounds.map(lambda b: st.floats(-b, b, width=32))
    return elements.flatmap(lambda e: arrays.arrays(np.float32, shapes, elements=e))


@formats
@given(data=st.data())
def test_error_is_bounded_by_the_scale(fmt: Format, data: st.DataObject) -> None:
    w = data.draw(weights(cols=128))
    error = np.abs(round_trip(fmt, w) - w).reshape(len(w), -1, fmt.group or 128)
    parts = np.abs(w).reshape(error.shape)
    if fmt.name == "bf16":
        bound = parts * 2.0**-8
    elif fmt.name == "q8":
        bound = parts.max(axis=2, keepdims=True) / 127 * 0.5001
    elif fmt.name == "mxfp4":
        # Half the widest step of its binade, 2 of 8; and what lies between 6 and 8 becomes 6.
        bound = parts.max(axis=2, keepdims=True) / 4
    else:
        # Half a step, and where the rounded range is too short: 2^-8 of bias and range.
        spread = np.ptp(w.reshape(error.shape), axis=2, keepdims=True)
        bound = spread / 30 * 1.01 + 2.0**-8 * (spread + parts.max(axis=2, keepdims=True))
    assert np.all(error <= bound + 1e-37)


@formats
def test_representable_weights_survive_exactly(fmt: Format) -> None:
    rng = np.random.default_rng(31)
    values = {"bf16": range(128), "q8": range(128), "q4": range(16), "mxfp4": FP4}[fmt.name]
    codes = rng.choice([*values], (21, 3, 128))
    codes[:, :, ::32], codes[:, :, 1::32] = 0, max(values)  # each group spans the whole range
    w = (codes * 2.0 ** rng.integers(-9, 9, (21, 3, 1))).reshape(21, -1).astype(np.float32)
    data = fmt.encode(w)
    assert np.array_equal(fmt.decode(data, *w.shape), w)
    assert np.array_equal(fmt.encode(fmt.decode(data, *w.shape)), data)


@grouped
@pytest.mark.parametrize("value", [0.0, -0.0, 0.5, -3.0])
def test_a_constant_group_is_exact(fmt: Format, value: float) -> None:
    w = np.full((3, 256), value, dtype=np.float32)
    assert np.array_equal(round_trip(fmt, w), w)


@grouped
def test_a_negative_group_keeps_its_sign(fmt: Format) -> None:
    w = -np.random.default_rng(32).uniform(1, 2, (9, 256)).astype(np.float32)
    decoded = round_trip(fmt, w)
    assert np.all(decoded < 0)
    assert np.abs(decoded - w).max() < (0.5 if fmt.name == "mxfp4" else 0.05)


@given(data=st.data())
def test_what_was_mxfp4_stays_exactly_what_it_was(data: st.DataObject) -> None:
    """Whatever scale the values were stored with, and whichever zeros they have."""
    codes = data.draw(arrays.arrays(np.int8, (9, 64), elements=st.integers(0, 15)))
    scales = data.draw(arrays.arrays(np.int32, (9, 2), elements=st.integers(0, 252)))
    signed = np.array([*FP4, *(-value for value in FP4)], dtype=np.float32)[codes]
    w = np.ldexp(signed.reshape(9, 2, 32), scales[..., None] - 127).reshape(9, 64)
    found = round_trip(Format("mxfp4", 32), w)
    assert np.array_equal(found.view(np.uint32), w.view(np.uint32))


@pytest.mark.parametrize("scale", [2.0**-126, 1.0, 2.0**100])
def test_mxfp4_takes_the_nearest_code_and_between_two_the_even_one(scale: float) -> None:
    steps = np.arange(0, 8, 1 / 16)
    w = np.zeros((8, 4 * 32), dtype=np.float32)
    w[0] = steps * scale
    w[0, ::32] = 4 * scale  # fixes the scale of each group
    found = round_trip(Format("mxfp4", 32), w)[0] / scale
    for x, got in zip(w[0] / scale, found, strict=True):
        distances = [abs(x - value) for value in FP4]
        near = [code for code in range(8) if distances[code] == min(distances)]
        assert got == FP4[next((code for code in near if code % 2 == 0), near[0])], x


def test_zeros_of_either_sign_are_stored_alike() -> None:
    rng = np.random.default_rng(33)
    mixed = np.where(rng.random((8, 256)) < 0.5, -0.0, 0.0).astype(np.float32)
    for group in groups("q4"):
        fmt = Format("q4", group)
        assert np.array_equal(fmt.encode(mixed), fmt.encode(np.zeros_like(mixed)))


@formats
@pytest.mark.parametrize("rows", [1, 7, 9])
def test_missing_rows_are_zero_rows(fmt: Format, rows: int) -> None:
    w = np.random.default_rng(34).standard_normal((rows, 128)).astype(np.float32)
    data = fmt.encode(w)
    height = -(-rows // 8) * 8
    assert data.size == fmt.nbytes(rows, 128) == fmt.nbytes(height, 128)
    full = fmt.decode(data, height, 128)
    assert np.array_equal(full[:rows], fmt.decode(data, rows, 128))
    assert np.all(full[rows:] == 0)


@formats
def test_blocks_and_groups_are_independent(fmt: Format) -> None:
    rng = np.random.default_rng(35)
    w = rng.standard_normal((24, 256)).astype(np.float32)
    data = fmt.encode(w).reshape(3, -1)
    for block in range(3):
        assert np.array_equal(data[block], fmt.encode(w[8 * block : 8 * block + 8]))
        halves = [fmt.encode(w[8 * block : 8 * block + 8, c : c + 128]) for c in (0, 128)]
        assert np.array_equal(data[block], np.concatenate(halves))


def test_byte_layout_of_one_q4_group() -> None:
    w = np.tile(np.arange(16, dtype=np.float32), (8, 2))
    data = Format("q4", 32).encode(w)
    units = data[:128].reshape(4, 8, 4)  # unit, row, byte
    assert units[0, 0].tolist() == [0x40, 0x51, 0x62, 0x73]
    assert units[1, 7].tolist() == [0xC8, 0xD9, 0xEA, 0xFB]
    assert data[128:144].view("<u2").tolist() == [0x3F80] * 8  # scales: 1
    assert data[144:160].view("<u2").tolist() == [0] * 8  # biases: 0


def test_byte_layout_of_one_q8_group() -> None:
    w = np.zeros((8, 32), dtype=np.float32)
    w[3] = np.arange(32) - 127 + 31
    w[3, 0] = -127
    data = Format("q8", 32).encode(w)
    units = data[:256].reshape(8, 8, 4).view(np.int8)
    assert units[:, 3].reshape(-1).tolist() == w[3].astype(int).tolist()
    assert data[256:288].view("<f4").tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x80000001], dtype=np.uint32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x8000]
    assert to_bf16(bits.view(np.float32)).tolist() == expected
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[np.isfinite(from_bf16(every))]
    assert np.array_equal(to_bf16(from_bf16(finite)), finite)


def test_fits_says_which_widths_can_be_stored() -> None:
    assert Format("bf16").fits(6)
    assert not Format("bf16").fits(5)
    assert Format("q4", 64).fits(128)
    assert not Format("q4", 64).fits(96)
    assert not Format("q8", 32).fits(0)


@pytest.mark.parametrize(("name", "group"), [("q7", 64), ("q4", 48), ("q8", 0), ("bf16", 64)])
def test_unknown_formats_are_refused(name: str, group: int) -> None:
    with pytest.raises(UsageError):
        Format(name, group)
