"""Multi-head latent attention in the latent space: many query heads over one row per position.

A row of the cache is a token's latent vector [RANK], which is also its value, and the rotated key
[ROPE] that all heads share. Each is read once for both uses.
"""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.attention import _dot
from flashmoe.ops.cuda.kernels.rows import rotated_row
from flashmoe.ops.cuda.kernels.weights import (
    block_words,
    code,
    load_bias,
    load_scale,
    load_words,
    unit_cols,
    unit_column,
)


@triton.jit
def store_latent(
    latent_ptr, key_ptr, norm_ptr, cos_ptr, sin_ptr, cache, start_ptr, eps,
    latent_stride, key_stride,
    RANK: tl.constexpr, ROPE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    ROPE_BLOCK: tl.constexpr,
):  # fmt: skip
    """The normed latent vector and the rotated key of token t -> rows of the cache; grid (T)."""
    t = tl.program_id(0).to(tl.int64)
    row = cache + (tl.load(start_ptr) + t) * (RANK + ROPE)
    at, p, one = tl.arange(0, BLOCK), tl.arange(0, ROPE_BLOCK), tl.arange(0, 1)
    x = tl.load(latent_ptr + t * latent_stride + at, mask=at < RANK, other=0.0)
    w = tl.load(norm_ptr + at, mask=at < RANK, other=0.0)
    x *= tl.rsqrt(tl.sum(x * x, 0) / RANK + eps) * w
    kind: tl.constexpr = cache.dtype.element_ty
    tl.store(row + at, x.to(kind), mask=at < RANK)
    turn = t * HALF + one
    key = rotated_row(
        key_ptr + t * key_stride + one, norm_ptr, cos_ptr + turn, sin_ptr + turn, eps, one < 1,
        ROPE, HALF, False, ROPE_BLOCK,
    )  # fmt: skip
    tl.store(row + RANK + p, tl.sum(key, 0).to(kind), mask=p < ROPE)


@triton.jit
def attend_latent(
    q_ptr, turn_ptr, cos_ptr, sin_ptr, cache, start_ptr, out_ptr, part_ptr, peak_ptr, sum_ptr,
    scale, stride_t, stride_h,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, HALF: tl.constexpr,
    SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
    ROPE_BLOCK: tl.constexpr,
):  # fmt: skip
    """One stretch of the positions for BM heads of a token; grid (Hq / BM, SPLITS, T).

    q [T, Hq, RANK] meets latent vectors; what meets the shared key is rotated here. Several
    stretches leave part, peak and sum for attend_join; a single one writes out [T, Hq, RANK].
    """
    split, t = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = tl.program_id(0) * BM + tl.arange(0, BM)
    mine = head < HEADS
    length = tl.load(start_ptr) + t.to(tl.int32) + 1
    stretch = tl.cdiv(tl.cdiv(length, SPLITS), BN) * BN
    begin = split * stretch
    end = tl.minimum(begin + stretch, length)
    kind: tl.constexpr = cache.dtype.element_ty
    at, p, n = tl.arange(0, BLOCK), tl.arange(0, ROPE_BLOCK), tl.arange(0, BN)
    row = t * HEADS + head
    inside = mine[:, None] & (at < RANK)[None, :]
    place = row[:, None] * RANK + at[None, :]
    q = (tl.load(q_ptr + place, mask=inside, other=0.0) * scale).to(kind)
    turn = t * HALF + head * 0
    turned = rotated_row(
        turn_ptr + t * stride_t + head * stride_h, cos_ptr, cos_ptr + turn, sin_ptr + turn, 0.0,
        mine, ROPE, HALF, False, ROPE_BLOCK,
    ) * scale  # fmt: skip
    peak = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BLOCK], tl.float32)
    for first in range(begin, end, BN):
        position = first + n
        seen = position < end
        where = cache + position.to(tl.int64)[:, None] * (RANK + ROPE)
        latent = tl.load(where + at[None, :], mask=seen[:, None] & (at < RANK)[None, :], other=0.0)
        key = tl.load(
            where + RANK + p[None, :], mask=seen[:, None] & (p < ROPE)[None, :], other=0.0
        )
        scores = _dot(q, tl.trans(latent), kind) + _dot(turned, tl.trans(key), kind)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        powers = tl.exp(scores - new_peak[:, None])
        shrink = tl.exp(peak - new_peak)
        acc = acc * shrink[:, None] + _dot(powers, latent, kind)
        total = total * shrink + tl.sum(powers, 1)
        peak = new_peak
    if SPLITS == 1:
        tl.store(out_ptr + place, acc / total[:, None], mask=inside)
    else:
        slot = row * SPLITS + split
        tl.store(peak_ptr + slot, peak, mask=mine)
        tl.store(sum_ptr + slot, total, mask=mine)
        if begin < end:
            tl.store(part_ptr + slot[:, None] * RANK + at[None, :], acc, mask=inside)


@triton.jit
def head_gemv(
    x_ptr, w_ptr, out_ptr, stride_t, stride_h, per_head,
    COLS: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """out [T, heads, N] = x[t, head] @ W[head].T; grid (row blocks, T); per_head: blocks of N."""
    block, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    units: tl.constexpr = COLS // unit_cols(FORMAT)
    x = x_ptr + t * stride_t + block // per_head * stride_h
    off = block.to(tl.int64) * block_words(COLS, FORMAT, GROUP)
    sums = tl.zeros([UNITS, 8], tl.float32)
    for begin in range(0, units, UNITS):
        k = begin + tl.arange(0, UNITS)
        valid = k < units
        words = load_words(w_ptr, off, k, valid, FORMAT, GROUP)
        part, inputs = tl.zeros([UNITS, 8], tl.float32), tl.zeros([UNITS], tl.float32)
        for n in tl.static_range(unit_cols(FORMAT)):
            column = k * unit_cols(FORMAT) + unit_column(n, FORMAT)
            y = tl.load(x + column, mask=valid, other=0.0)
            part += code(words, n, FORMAT) * y[:, None]
            inputs += y
        bias = load_bias(w_ptr, off, k, valid, FORMAT, GROUP)
        sums += part * load_scale(w_ptr, off, k, valid, FORMAT, GROUP) + inputs[:, None] * bias
    row = (t * tl.num_programs(0) + block) * 8 + tl.arange(0, 8)
    tl.store(out_ptr + row, tl.sum(sums, 0))
