"""q2 and q3: the layout by the rules of docs/format.md, codes next to the weight, scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.quant import Format
from flashmoe.quant.codebook import BOOKS, Codebook, scale_bytes, scales
from flashmoe.quant.layout import Bytes
from tests.support.tolerances import NORMAL_WEIGHTS

books = pytest.mark.parametrize("book", BOOKS.values(), ids=list(BOOKS))
groups = pytest.mark.parametrize("group", [32, 64, 128])


def code_at(book: Codebook, data: Bytes, row: int, col: int, cols: int, group: int) -> int:
    """The code of one weight, read bit by bit."""
    block = data[row // 8 * 8 * book.row_bytes(cols, group) :]
    at = col // group * 8 * (group * book.bits // 8 + 1) + col % group // 32 * 32 * book.bits
    lane, within = 4 * (row % 8) + col % 4, col % 32
    if book.bits < 4:
        low, width = int(block[at + within // 16 * 32 + lane]) >> within % 16 // 4 * 2 & 3, 2
    else:
        low, width = int(block[at + within // 8 * 32 + lane]) >> within % 8 // 4 * 4 & 15, 4
    if book.bits == width:
        return low
    return low | (int(block[at + 32 * width + lane]) >> within // 4 & 1) << width


@books
@groups
def test_the_layout_is_the_documented_one(book: Codebook, group: int) -> None:
    rng = np.random.default_rng(70)
    code = rng.integers(0, 2**book.bits, (16, 256), dtype=np.uint8)
    scale = rng.integers(0, 256, (16, 256 // group), dtype=np.uint8)
    data = book.join(code.reshape(16, -1, group), scale)
    found = [[code_at(book, data, r, c, 256, group) for c in range(256)] for r in range(16)]
    assert np.array_equal(found, code)
    meaning = book.levels[code] * np.repeat(scales(scale), group, axis=1)
    assert np.array_equal(book.decode(data, 16, 256, group), meaning)
    assert data.size == Format(book.NAME, group).nbytes(16, 256)


@books
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-6, 20))
def test_a_weight_gets_the_nearest_level(book: Codebook, seed: int, spread: float) -> None:
    w = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32) * spread
    w = np.clip(w, -128, 128).astype(np.float32)
    fmt = Format(book.NAME, 64)
    data = fmt.encode(w)
    tail = data[-8:][:3]
    choices = book.levels * scales(tail)[:, None]
    best = np.abs(w[..., None] - choices[:, None]).min(axis=2)
    assert np.all(np.abs(fmt.decode(data, 3, 64) - w) <= best * 1.0001)


def test_scale_bytes_round_trip() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(scale_bytes(scales(every)), every)
    assert scales(every)[0] == 2.0**-28
    assert scales(every)[-1] == 15
    assert np.array_equal(scale_bytes(np.array([0, 99], np.float32)), [0, 255])


@books
def test_normal_weights_lose_what_the_quantiser_should(book: Codebook) -> None:
    w = np.random.default_rng(71).standard_normal((64, 1024)).astype(np.float32)
    fmt = Format(book.NAME, 64)
    error = np.square(fmt.decode(fmt.encode(w), 64, 1024) - w).mean()
    assert error < NORMAL_WEIGHTS[book.NAME]
