"""Stored matrices to rows of numbers: for large products and for embeddings."""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.weights import block_words, unit_cols, unit_values


@triton.jit
def dequantize(
    w_ptr, slots_ptr, counts_ptr, out_ptr, first_expert, blob_words, rows,
    COLS: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, RECORD_WORDS: tl.constexpr,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """out [experts, padded rows, COLS] = the weights; grid (row blocks, pieces of a row, experts).

    EXPERTS: matrix z is that of expert first_expert + z, at its slot; experts without tokens
    (counts) are left out. PAIRS: rows that alternate by 8 come out as two halves.
    """
    block, expert = tl.program_id(0), tl.program_id(2)
    off = blob_words + block.to(tl.int64) * block_words(COLS, FORMAT, GROUP)
    used = True
    if EXPERTS:
        used = tl.load(counts_ptr + first_expert + expert) > 0
        off += tl.load(slots_ptr + first_expert + expert).to(tl.int64) * RECORD_WORDS
    if used:
        cols: tl.constexpr = unit_cols(FORMAT)
        k = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
        valid = k < COLS // cols
        values = unit_values(w_ptr, off, k, valid, FORMAT, GROUP)
        row = block * 8 + tl.arange(0, 8)
        if PAIRS:
            row = block % 2 * (rows // 2) + block // 2 * 8 + tl.arange(0, 8)
        padded = tl.num_programs(0) * 8
        at = (expert.to(tl.int64) * padded + row[None, :]) * COLS + k[:, None] * cols
        out = out_ptr + at[:, :, None] + tl.arange(0, cols)[None, None, :]
        tl.store(out, values.to(out_ptr.dtype.element_ty), mask=valid[:, None, None])


@triton.jit
def embed(
    w_ptr, ids_ptr, out_ptr,
    COLS: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """out [T, COLS] = rows `ids` of the matrix; grid (T, pieces of a row)."""
    t = tl.program_id(0).to(tl.int64)
    id = tl.load(ids_ptr + t).to(tl.int64)
    cols: tl.constexpr = unit_cols(FORMAT)
    k = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    valid = k < COLS // cols
    off = id // 8 * block_words(COLS, FORMAT, GROUP)
    values = unit_values(w_ptr, off, k, valid, FORMAT, GROUP)
    # All 8 rows of the block have come along; only one of them is stored.
    mine = (tl.arange(0, 8) == id % 8)[None, :, None] & valid[:, None, None]
    at = k[:, None, None] * cols + tl.arange(0, cols)[None, None, :]
    at += tl.arange(0, 8)[None, :, None] * 0
    tl.store(out_ptr + t * COLS + at, values, mask=mine)
