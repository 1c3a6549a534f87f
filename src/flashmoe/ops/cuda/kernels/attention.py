"""Grouped-query attention over a cache: split over keys for a few tokens, blocked for many.

The position of the first token is read from memory, so that a captured graph can be replayed at
any position. Dots run in the cache's type (float16, or float32 in full precision), sums in float32.
"""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.rows import rotated_row, store_heads


@triton.jit
def _dot(a, b, dtype: tl.constexpr):
    return tl.dot(a.to(dtype), b.to(dtype), input_precision="ieee")


@triton.jit
def attend_split(
    q_ptr, w_ptr, cos_ptr, sin_ptr, k_cache, v_cache, start_ptr, part_ptr, peak_ptr, sum_ptr,
    eps, scale, stride_t, stride_h, context, new_k_ptr, new_v_ptr, new_w_ptr, new_eps,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
    HALF: tl.constexpr, NORM: tl.constexpr, SPLITS: tl.constexpr, BN: tl.constexpr,
    BLOCK: tl.constexpr, WINDOW: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """One stretch of the keys for the GROUP query heads of a key head; grid (Hkv, SPLITS, T).

    Queries are normed and rotated here. part [T, Hq, SPLITS, D]: sums of values weighted by
    exp(score - peak); peak, sum [T, Hq, SPLITS]. WINDOW: only so many keys are seen, in a ring of
    `context` positions (0: all). STORE (a single token): the program with the last stretch first
    stores new_k and new_v [Hkv, D], as kv_store does.
    """
    head, split, t = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(start_ptr) + t.to(tl.int32) + 1
    oldest = tl.maximum(length - WINDOW, 0) if WINDOW else 0
    stretch = tl.cdiv(tl.cdiv(length - oldest, SPLITS), BN) * BN
    begin = oldest + split * stretch
    end = tl.minimum(begin + stretch, length)
    g = tl.arange(0, ROWS)
    query = head * GROUP + g
    mine = g < GROUP
    turn = t * HALF + g * 0
    q = rotated_row(
        q_ptr + t * stride_t + query * stride_h, w_ptr, cos_ptr + turn, sin_ptr + turn, eps, mine,
        D, HALF, NORM, BLOCK,
    ) * scale  # fmt: skip
    kind: tl.constexpr = k_cache.dtype.element_ty
    at, n = tl.arange(0, BLOCK), tl.arange(0, BN)
    base = head.to(tl.int64) * context
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    if STORE and (begin < length) & (end == length):
        store_heads(
            new_k_ptr, new_v_ptr, new_w_ptr, cos_ptr, sin_ptr, k_cache, v_cache, length - 1,
            new_eps, context, head + tl.arange(0, 1), HEADS // GROUP, D, HALF, NORM, BLOCK,
        )  # fmt: skip
        tl.debug_barrier()  # the loop below reads them
    for first in range(begin, end, BN):
        position = first + n
        seen = position < end
        where = (base + (position % context if WINDOW else position))[:, None] * D + at[None, :]
        inside = seen[:, None] & (at < D)[None, :]
        k = tl.load(k_cache + where, mask=inside, other=0.0)
        scores = tl.where(seen[None, :], _dot(q, tl.trans(k), kind), -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        powers = tl.exp(scores - new_peak[:, None])
        shrink = tl.exp(peak - new_peak)
        v = tl.load(v_cache + where, mask=inside, other=0.0)
        acc = acc * shrink[:, None] + _dot(powers, v, kind)
        total = total * shrink + tl.sum(powers, 1)
        peak = new_peak
    slot = (t * HEADS + query) * SPLITS + split
    tl.store(peak_ptr + slot, peak, mask=mine)
    tl.store(sum_ptr + slot, total, mask=mine)
    if begin < end:
        tl.store(part_ptr + slot[:, None] * D + at[None, :], acc,
                 mask=mine[:, None] & (at < D)[None, :])  # fmt: skip


@triton.jit
def attend_join(
    part_ptr, peak_ptr, sum_ptr, sinks_ptr, out_ptr,
    HEADS: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """out [T, Hq, D] from the stretches; grid (Hq, T). Those without keys are not read.

    SINKS: one more key per head with the score sinks [Hq], whose value is zero.
    """
    row = tl.program_id(1).to(tl.int64) * HEADS + tl.program_id(0)
    s, at = tl.arange(0, SPLITS), tl.arange(0, BLOCK)
    peak = tl.load(peak_ptr + row * SPLITS + s)
    largest = tl.max(peak, 0)
    if SINKS:
        sink = tl.load(sinks_ptr + tl.program_id(0))
        largest = tl.maximum(largest, sink)
    share = tl.exp(peak - largest)
    total = tl.sum(tl.load(sum_ptr + row * SPLITS + s) * share, 0)
    if SINKS:
        total += tl.exp(sink - largest)
    known = (peak > -float("inf"))[:, None] & (at < D)[None, :]
    where = (row * SPLITS + s)[:, None] * D + at[None, :]
    part = tl.load(part_ptr + where, mask=known, other=0.0)
    tl.store(out_ptr + row * D + at, tl.sum(part * share[:, None], 0) / total, mask=at < D)


@triton.jit
def attend_block(
    q_ptr, k_cache, v_cache, start_ptr, sinks_ptr, out_ptr, scale, tokens, context,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Causal attention of BM tokens of one head; grid (T / BM, Hq). q [T, Hq, D] in cache type.

    WINDOW, SINKS: as in attend_split and attend_join.
    """
    head = tl.program_id(1)
    t = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM + tl.arange(0, BM)
    start = tl.load(start_ptr)
    kind: tl.constexpr = k_cache.dtype.element_ty
    at, n = tl.arange(0, BLOCK), tl.arange(0, BN)
    row = (t.to(tl.int64) * HEADS + head)[:, None] * D + at[None, :]
    mine = (t < tokens)[:, None] & (at < D)[None, :]
    q = tl.load(q_ptr + row, mask=mine, other=0.0)
    base = (head // GROUP).to(tl.int64) * context
    peak = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BLOCK], tl.float32)
    # exp2 is the instruction there is: the factor goes into the scale.
    scale *= 1.4426950408889634
    limit = start + tl.minimum(tl.max(t, 0) + 1, tokens)
    oldest = tl.maximum(start + tl.min(t, 0) + 1 - WINDOW, 0) // BN * BN if WINDOW else 0
    for first in range(oldest, limit, BN):
        position = first + n
        where = (base + (position % context if WINDOW else position))[:, None] * D + at[None, :]
        inside = (position < limit)[:, None] & (at < D)[None, :]
        k = tl.load(k_cache + where, mask=inside, other=0.0)
        scores = _dot(q, tl.trans(k), kind) * scale
        scores = tl.where(position[None, :] <= (start + t)[:, None], scores, -float("inf"))
        if WINDOW:
            gone = position[None, :] + WINDOW <= (start + t)[:, None]
            scores = tl.where(gone, -float("inf"), scores)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        if WINDOW:
            # Of keys that a later token no longer sees there may be a whole block.
            new_peak = tl.maximum(new_peak, -1e30)
        powers = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        v = tl.load(v_cache + where, mask=inside, other=0.0)
        acc = acc * shrink[:, None] + _dot(powers, v, kind)
        total = total * shrink + tl.sum(powers, 1)
        peak = new_peak
    if SINKS:
        sink = tl.load(sinks_ptr + head) * 1.4426950408889634
        new_peak = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.exp2(sink - new_peak)
        acc *= shrink[:, None]
    if WINDOW:
        # Rows past the last token may have seen nothing.
        total = tl.where(t < tokens, total, 1.0)
    tl.store(out_ptr + row, acc / total[:, None], mask=mine)
