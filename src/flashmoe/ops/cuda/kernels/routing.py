"""The router: norm, scores, and the choice of experts."""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.gemv import (
    input_squares,
    store_normed,
    stored_units,
    unit_products,
)
from flashmoe.ops.cuda.kernels.weights import block_words, unit_cols


@triton.jit
def choose(
    logits, ids_ptr, weights_ptr,
    TOPK: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The TOPK largest of logits [BLOCK], the lower id first where equal, and their softmax."""
    at, k = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    powers = tl.exp(logits - tl.max(logits, 0))
    left = logits
    ids = tl.zeros([SLOTS], tl.int32)
    weights = tl.zeros([SLOTS], tl.float32)
    for rank in tl.static_range(TOPK):
        best = tl.argmax(left, 0, tie_break_left=True)
        chosen = at == best
        ids = tl.where(k == rank, best, ids)
        weights = tl.where(k == rank, tl.sum(tl.where(chosen, powers, 0.0), 0), weights)
        left = tl.where(chosen, -float("inf"), left)
    total = tl.sum(weights, 0) if RENORMALIZE else tl.sum(powers, 0)
    tl.store(ids_ptr + k, ids, mask=k < TOPK)
    tl.store(weights_ptr + k, weights / total, mask=k < TOPK)


@triton.jit
def softmax_topk(
    logits_ptr, ids_ptr, weights_ptr, experts,
    TOPK: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """choose for each of the rows of logits [T, experts]; grid (T)."""
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + t * experts + at, mask=at < experts, other=-float("inf"))
    choose(logits, ids_ptr + t * TOPK, weights_ptr + t * TOPK, TOPK, RENORMALIZE, BLOCK, SLOTS)


@triton.jit
def route(
    x_ptr, norm_ptr, w_ptr, logits_ptr, normed_ptr, counter_ptr, ids_ptr, weights_ptr, eps,
    COLS: tl.constexpr, EXPERTS: tl.constexpr, TOPK: tl.constexpr, RENORMALIZE: tl.constexpr,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, UNITS: tl.constexpr,
    BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """Logits of norm(x), and the experts they choose; grid (row blocks, T). All units at once.

    The program that ends last does the choosing: counter [T], zero before and after, tells which.
    With NORM, program 0 also writes norm(x) to `normed`.
    """
    block, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k = tl.arange(0, UNITS)
    valid = k < COLS // unit_cols(FORMAT)
    off = block * block_words(COLS, FORMAT, GROUP)
    words, scale, bias = stored_units(w_ptr, off, k, valid, FORMAT, GROUP)
    x_ptr += t * COLS
    logits_ptr += t * EXPERTS
    parts = unit_products(words, scale, bias, x_ptr, norm_ptr, k, valid, FORMAT, NORM, EMULATED)
    sums = tl.sum(parts, 0)
    if NORM:
        factor = tl.rsqrt(tl.sum(input_squares(x_ptr, k, valid, FORMAT), 0) / COLS + eps)
        sums *= factor
        if block == 0:
            store_normed(x_ptr, norm_ptr, normed_ptr + t * COLS, factor, COLS)
    row = block * 8 + tl.arange(0, 8)
    tl.store(logits_ptr + row, sums, mask=row < EXPERTS)
    tl.debug_barrier()  # every thread's results come before the count
    if tl.atomic_add(counter_ptr + t, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(counter_ptr + t, 0)
        at = tl.arange(0, BLOCK)
        logits = tl.load(
            logits_ptr + at, mask=at < EXPERTS, other=-float("inf"), cache_modifier=".cg"
        )
        choose(logits, ids_ptr + t * TOPK, weights_ptr + t * TOPK, TOPK, RENORMALIZE, BLOCK, SLOTS)
