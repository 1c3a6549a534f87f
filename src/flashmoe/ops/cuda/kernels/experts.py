"""The routed experts of a few tokens: two kernels, each reading every weight once per token.

Expert records lie in slots of one arena, as they are on disk. A pair p is token p // K with its
p % K-th expert; `slots` says where each expert of the layer is.
"""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.activation import activated, gate_biases
from flashmoe.ops.cuda.kernels.gemv import (
    fixed_point,
    fixed_products,
    float_products,
    load_codes,
    store_fixed,
    two_blocks,
)
from flashmoe.ops.cuda.kernels.weights import (
    block_words,
    load_bias,
    load_scale,
    load_words,
    unit_cols,
)


@triton.jit
def experts_hidden(
    x_ptr, norm_ptr, eps, arena_ptr, ids_ptr, slots_ptr, hidden_ptr,
    TOPK: tl.constexpr, COLS: tl.constexpr, INTERMEDIATE: tl.constexpr,
    RECORD_WORDS: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    CODED: tl.constexpr, CODES: tl.constexpr, UNITS: tl.constexpr, EMULATED: tl.constexpr,
    CLAMPED: tl.constexpr, BIAS_WORDS: tl.constexpr,
):  # fmt: skip
    """hidden [T * K, I] = activation of gate(x), up(x) of each pair's expert; grid (I / 8, T * K).

    Blocks of gate and up rows alternate: a program makes one of each and multiplies them. Pairs
    whose expert has no slot (-1) are left out. BIAS_WORDS: where biases begin, 0: none. CODED: x is
    codes; CODES: so will hidden be.
    """
    i, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + tl.load(ids_ptr + pair)).to(tl.int64)
    if slot >= 0:
        words: tl.constexpr = block_words(COLS, FORMAT, GROUP)
        units: tl.constexpr = COLS // unit_cols(FORMAT)
        off = slot * RECORD_WORDS + i * 2 * words
        x = x_ptr + pair // TOPK * (6 * units if CODED else COLS)
        squares = tl.zeros([UNITS], tl.float32)
        gates = tl.zeros([UNITS, 8], tl.float32)
        ups = tl.zeros([UNITS, 8], tl.float32)
        for begin in range(0, units, UNITS):
            k = begin + tl.arange(0, UNITS)
            valid = k < units
            gate, up, more = two_blocks(
                arena_ptr, off, off + words, x, norm_ptr, units, k, valid, valid, valid,
                FORMAT, GROUP, NORM, CODED, True, EMULATED,
            )  # fmt: skip
            gates, ups, squares = gates + gate, ups + up, squares + more
        scale = 1.0
        if NORM:
            scale = tl.rsqrt(tl.sum(squares, 0) / COLS + eps)
        gate, up = tl.sum(gates, 0) * scale, tl.sum(ups, 0) * scale
        row = i * 8 + tl.arange(0, 8)
        if BIAS_WORDS:
            biases = (arena_ptr + slot * RECORD_WORDS + BIAS_WORDS).to(tl.pointer_type(tl.float32))
            gate_bias, up_bias = gate_biases(biases, row, row < INTERMEDIATE)
            gate += gate_bias
            up += up_bias
        hidden = activated(gate, up, CLAMPED)
        if CODES:
            units_out: tl.constexpr = INTERMEDIATE // 8
            one = tl.arange(0, 1)
            low, high, low4, high4, step, inputs = fixed_point(tl.reshape(hidden, [1, 8]))
            out = hidden_ptr + pair * (6 * units_out)
            store_fixed(out, units_out, i + one, one == 0, low, high, low4, high4, step, inputs)
        else:
            tl.store(hidden_ptr + pair * INTERMEDIATE + row, hidden)


@triton.jit
def experts_down(
    hidden_ptr, weights_ptr, arena_ptr, ids_ptr, slots_ptr, out_ptr,
    TOPK: tl.constexpr, HIDDEN: tl.constexpr, INTERMEDIATE: tl.constexpr,
    RECORD_WORDS: tl.constexpr, DOWN_WORDS: tl.constexpr, FORMAT: tl.constexpr,
    GROUP: tl.constexpr, UNITS: tl.constexpr, EMULATED: tl.constexpr, BIAS_WORDS: tl.constexpr,
):  # fmt: skip
    """out [T, H] += sum over k of weights[t, k] * down(hidden[t, k]); grid (H / 8, T).

    The units of all K experts form one row, summed in one order: it does not matter where the
    experts came from, or when. Pairs whose expert has no slot (-1) are left out. DOWN_WORDS: where
    the down blob begins in a record; BIAS_WORDS: where its biases do (0: none). hidden is codes
    for q4 (see load_codes).
    """
    block, t = tl.program_id(0), tl.program_id(1)
    words: tl.constexpr = block_words(INTERMEDIATE, FORMAT, GROUP)
    units: tl.constexpr = INTERMEDIATE // unit_cols(FORMAT)
    sums = tl.zeros([UNITS, 8], tl.float32)
    for begin in range(0, TOPK * units, UNITS):
        at = begin + tl.arange(0, UNITS)
        valid = at < TOPK * units
        pair, k = t * TOPK + at // units, at % units
        expert = tl.load(ids_ptr + pair, mask=valid, other=0)
        slot = tl.load(slots_ptr + expert, mask=valid, other=-1).to(tl.int64)
        valid &= slot >= 0
        weight = tl.load(weights_ptr + pair, mask=valid, other=0.0)
        off = slot * RECORD_WORDS + DOWN_WORDS + block * words
        words_k = load_words(arena_ptr, off[:, None], k, valid, FORMAT, GROUP)
        scale = load_scale(arena_ptr, off, k, valid, FORMAT, GROUP)
        if FORMAT == "q4":
            bias = load_bias(arena_ptr, off, k, valid, FORMAT, GROUP)
            x = hidden_ptr + pair.to(tl.int64) * (6 * units)
            low, high, low4, high4, step, inputs = load_codes(x, units, k, valid)
            part = fixed_products(
                words_k, scale, bias, low, high, low4, high4, step, inputs, EMULATED
            )
        else:
            x = hidden_ptr + pair.to(tl.int64) * INTERMEDIATE
            part = float_products(words_k, scale, x, x, k, valid, FORMAT, False)
        sums += part * weight[:, None]
    row = block * 8 + tl.arange(0, 8)
    total = tl.sum(sums, 0)
    if BIAS_WORDS:
        for k in tl.static_range(TOPK):
            slot = tl.load(slots_ptr + tl.load(ids_ptr + t * TOPK + k)).to(tl.int64)
            biases = (arena_ptr + slot * RECORD_WORDS + BIAS_WORDS).to(tl.pointer_type(tl.float32))
            bias = tl.load(biases + row, mask=(row < HIDDEN) & (slot >= 0), other=0.0)
            total += tl.load(weights_ptr + t * TOPK + k) * bias
    out = out_ptr + t.to(tl.int64) * HIDDEN + row
    tl.store(out, tl.load(out, mask=row < HIDDEN, other=0.0) + total, mask=row < HIDDEN)
