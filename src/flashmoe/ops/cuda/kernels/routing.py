"""The router: norm, scores, and the choice of experts."""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.gemv import store_normed, two_blocks
from flashmoe.ops.cuda.kernels.weights import block_words, unit_cols

# Up to so many experts each is compared with every other; beyond, the largest is taken K times.
_ALL_PAIRS = tl.constexpr(256)


@triton.jit
def choose(
    logits, ids_ptr, weights_ptr,
    TOPK: tl.constexpr, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The TOPK largest of logits [BLOCK], the lower id first where equal, and their softmax."""
    at, k = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    powers = tl.exp(logits - tl.max(logits, 0))
    # NaNs are powers already; here they must not leave a rank without an expert.
    left = tl.where(logits != logits, -float("inf"), logits)
    if BLOCK <= _ALL_PAIRS:
        ahead = (left[None, :] == left[:, None]) & (at[None, :] < at[:, None])
        ahead |= left[None, :] > left[:, None]
        rank = tl.sum(ahead.to(tl.int32), 1)
        chosen = rank < TOPK
        total = tl.sum(tl.where(chosen, powers, 0.0) if RENORMALIZE else powers, 0)
        tl.store(ids_ptr + rank, at, mask=chosen)
        tl.store(weights_ptr + rank, powers / total, mask=chosen)
    else:
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
    x_ptr, norm_ptr, w_ptr, logits_ptr, normed_ptr, codes_ptr, counter_ptr, ids_ptr, weights_ptr,
    eps,
    COLS: tl.constexpr, EXPERTS: tl.constexpr, TOPK: tl.constexpr, RENORMALIZE: tl.constexpr,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    UNITS: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """Logits of norm(x), and the experts they choose; grid (row blocks, T). All units at once.

    The program that ends last does the choosing: counter [T], zero before and after, tells which.
    With NORM, each program also writes SHARE * 8 columns of norm(x) to `normed`, and what
    fixed_point makes of them to codes [T, 6, COLS / 8].
    """
    block, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k = tl.arange(0, UNITS)
    units: tl.constexpr = COLS // unit_cols(FORMAT)
    off = block * block_words(COLS, FORMAT, GROUP)
    x_ptr += t * COLS
    logits_ptr += t * EXPERTS
    valid = k < units
    parts, _, squares = two_blocks(
        w_ptr, off, off, x_ptr, norm_ptr, units, k, valid, valid, valid,
        FORMAT, GROUP, NORM, False, False, EMULATED,
    )  # fmt: skip
    sums = tl.sum(parts, 0)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / COLS + eps)
        sums *= factor
    row = block * 8 + tl.arange(0, 8)
    tl.store(logits_ptr + row, sums, mask=row < EXPERTS)
    tl.debug_barrier()  # every thread's results come before the count
    last = tl.atomic_add(counter_ptr + t, 1, sem="acq_rel") == tl.num_programs(0) - 1
    if NORM:
        store_normed(
            x_ptr, norm_ptr, normed_ptr + t * COLS, codes_ptr + t * (6 * (COLS // 8)), factor,
            block * SHARE + tl.arange(0, SHARE), COLS,
        )  # fmt: skip
    if last:
        tl.store(counter_ptr + t, 0)
        at = tl.arange(0, BLOCK)
        logits = tl.load(
            logits_ptr + at, mask=at < EXPERTS, other=-float("inf"), cache_modifier=".cg"
        )
        choose(logits, ids_ptr + t * TOPK, weights_ptr + t * TOPK, TOPK, RENORMALIZE, BLOCK, SLOTS)
