"""Products and rows of block formats: against the NumPy twins, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.ops import reference_linear as reference
from flashmoe.quant import BLOCK_FORMATS, Format
from flashmoe.quant.layout import Floats
from tests.support.blocks import BY_NAME, random_block_matrix
from tests.support.matrices import Stored, unwritten
from tests.support.tolerances import DOT

names = pytest.mark.parametrize("name", sorted(BY_NAME))
TOKENS = [1, 2, 3, 4, 5, 7, 33, 65]


def multiply(x: Floats, matrix: Stored, threads: int = 2) -> Floats:
    pool, acts = _native.Pool(threads), _native.Activations()
    acts.assign(pool, x, 0)
    out = unwritten(len(x), matrix.native.rows)
    _native.linear(pool, acts, [matrix.native], [out])
    return out


def widths(name: str) -> list[int]:
    """Columns: one run, some that do not fill a tile of the kernel, several tiles."""
    run = BY_NAME[name].cols
    return [run, 3 * run, 512 + run if run < 256 else 1024]


def test_the_kernels_know_the_same_formats() -> None:
    known = [(fmt.name, fmt.cols, fmt.nbytes) for fmt in BLOCK_FORMATS]
    assert sorted(_native.block_formats()) == sorted(known)


@names
@pytest.mark.parametrize("rows", [1, 7, 8, 21])
def test_matches_the_reference(isa: str, name: str, rows: int) -> None:
    rng = np.random.default_rng(1)
    for cols in widths(name):
        matrix = random_block_matrix(rng, name, rows, cols, offset=191)
        for tokens in TOKENS:
            x = rng.standard_normal((tokens, cols)).astype(np.float32)
            bound = DOT * (np.abs(x) @ np.abs(matrix.w).T) + 1e-30
            expected = reference.linear(x, matrix.w, 0)
            assert np.all(np.abs(multiply(x, matrix) - expected) <= bound)


@names
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(isa: str, name: str) -> None:
    rng = np.random.default_rng(2)
    matrix = random_block_matrix(rng, name, 53, 768)
    x = rng.standard_normal((70, 768)).astype(np.float32)
    together = multiply(x, matrix, threads=1)
    for threads in (2, 5):
        assert np.array_equal(multiply(x, matrix, threads=threads), together)
    for size in (1, 2, 3, 4, 5, 8, 23):
        parts = [multiply(x[i : i + size], matrix) for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate(parts), together)


@names
def test_rows_decode_to_the_bits_of_the_twin(isa: str, name: str) -> None:
    matrix = random_block_matrix(np.random.default_rng(3), name, 19, 512, offset=3)
    pool, out = _native.Pool(2), unwritten(19, 512)
    _native.dequantize(pool, matrix.native, out)
    assert np.array_equal(out.view(np.uint32), matrix.w.view(np.uint32))
    ids = np.array([18, 0, 7, 8, 7], np.int32)
    out = unwritten(5, 512)
    _native.embed(pool, matrix.native, ids, out)
    assert np.array_equal(out.view(np.uint32), matrix.w[ids].view(np.uint32))


def expert_layout(gate_up: str, down: str, hidden: int, inner: int) -> tuple[int, int]:
    """Where down starts in a record, and where it ends."""
    at = -(-Format(gate_up).nbytes(2 * inner, hidden) // 64) * 64
    return at, at + Format(down).nbytes(hidden, inner)


@names
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_experts_match_the_reference(isa: str, name: str, tokens: int) -> None:
    rng, (hidden, inner) = np.random.default_rng(4), (256, 512)
    gate_up = random_block_matrix(rng, name, 2 * inner, hidden)
    down = random_block_matrix(rng, name, hidden, inner)
    at, end = expert_layout(name, name, hidden, inner)
    record = np.zeros(end, np.uint8)
    record[: gate_up.data.size], record[at:] = gate_up.data, down.data
    layout = _native.ExpertLayout(name, 0, name, 0, hidden, inner, at)
    x = (rng.standard_normal((tokens, hidden)) * 0.01).astype(np.float32)
    pool, acts, out = _native.Pool(2), _native.Activations(), unwritten(tokens, hidden)
    acts.assign(pool, x, 0)
    every = np.arange(tokens, dtype=np.int32)
    offsets = np.array([0, tokens], np.int32)
    address = np.array([record.ctypes.data], np.uint64)
    _native.moe_ffn(pool, acts, layout, address, offsets, every, every, out)
    fmt = Format(name)
    expected = reference.ffn(x, gate_up.w, down.w, fmt, fmt)
    scale = np.abs(expected).max()
    assert np.abs(out - expected).max() <= 64 * DOT * scale


class TestRefusals:
    def test_encoding(self) -> None:
        w, out = np.zeros(4 * 8 * 32, np.uint8), np.zeros(8 * 34, np.uint8)
        with pytest.raises(ValueError, match=r"\[encode\] q8_0 is copied, never encoded"):
            _native.encode(_native.Pool(1), "q8_0", 0, w, "f32", 8, 32, out)

    def test_columns_and_groups(self) -> None:
        with pytest.raises(ValueError, match="cols: expected a positive multiple of 256, got 128"):
            _native.Matrix("q4_k", 0, 8, 128, np.zeros(576, np.uint8))
        with pytest.raises(ValueError, match="q4_k group: expected 0, got 32"):
            _native.Matrix("q4_k", 32, 8, 256, np.zeros(1152, np.uint8))
