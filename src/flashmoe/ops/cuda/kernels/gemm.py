"""Products of many rows with dequantised matrices, grouped by expert, on tensor cores.

Inputs come as planes of half-width numbers: one of float16 with a power-of-two scale per row (for
quantised weights), or two of bfloat16 whose sum is the input to 16 bits (for bf16 weights, which
are there to be exact). Sums are float32.
"""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.activation import activated, gate_biases


@triton.jit
def dot(x, w, acc, EMULATED: tl.constexpr):
    """acc + x @ w; EMULATED: on Triton's interpreter, which has no bfloat16 product."""
    if EMULATED:
        acc += tl.dot(x.to(tl.float32), w.to(tl.float32))
    else:
        acc = tl.dot(x, w, acc)
    return acc


@triton.jit
def split_rows(
    x_ptr, out_ptr, scale_ptr, plane,
    COLS: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x [T, COLS] -> planes [PLANES, T, COLS] and, for one plane, scales [T]; grid (T)."""
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t * COLS + at, mask=at < COLS, other=0.0)
    out = out_ptr + t * COLS + at
    if PLANES == 1:
        largest = tl.max(tl.abs(x), 0)
        # The exponent of the largest, so that what is stored lies within (-2, 2): no overflow.
        exponent = (largest.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
        exponent = tl.minimum(tl.maximum(exponent, 1), 253)
        unscale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        tl.store(scale_ptr + t, (exponent << 23).to(tl.float32, bitcast=True))
        tl.store(out, (x * unscale).to(tl.float16), mask=at < COLS)
    else:
        high = x.to(tl.bfloat16)
        tl.store(out, high, mask=at < COLS)
        tl.store(out + plane, (x - high.to(tl.float32)).to(tl.bfloat16), mask=at < COLS)


@triton.jit
def tile_span(
    experts_ptr, starts_ptr, offsets_ptr, tile, total, GROUPED: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """Tile -> its expert, its first position and the end of its expert's positions."""
    if GROUPED:
        expert = tl.load(experts_ptr + tile)
        begin = tl.load(starts_ptr + tile)
        end = tl.load(offsets_ptr + expert + 1)
    else:
        expert = tile * 0
        begin = tile * BM
        end = tile * 0 + total
    return expert, begin, end


@triton.jit
def gemm(
    x_ptr, scale_ptr, plane, w_ptr, out_ptr, order_ptr, experts_ptr, starts_ptr, offsets_ptr,
    bias_ptr, bias_stride, first_expert, last_expert, total, rows, padded,
    COLS: tl.constexpr, PLANES: tl.constexpr, GROUPED: tl.constexpr, ADD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EMULATED: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """out [T, rows] (+)= x @ W.T; grid (tiles of BM inputs, tiles of BN rows).

    GROUPED: tile i belongs to expert experts[i] and begins at sorted position starts[i]; its
    results go to out[order[position]]. Tiles of experts outside [first, last) are left out.
    BIASED: the biases of an expert's rows are bias_stride after those of the one before.
    """
    tile = tl.program_id(0)
    expert, begin, end = tile_span(experts_ptr, starts_ptr, offsets_ptr, tile, total, GROUPED, BM)
    if (expert >= first_expert) & (expert < last_expert):
        position = begin + tl.arange(0, BM)
        mine = position < end
        row = tl.program_id(1) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        x = x_ptr + position.to(tl.int64)[:, None] * COLS + k[None, :]
        matrix = (expert - first_expert).to(tl.int64) * padded
        w = w_ptr + (matrix + row)[None, :].to(tl.int64) * COLS + k[:, None]
        acc = tl.zeros([BM, BN], tl.float32)
        for at in range(0, COLS, BK):
            inside = k < COLS - at
            tile_w = tl.load(w, mask=inside[:, None] & (row < rows)[None, :], other=0.0)
            seen = mine[:, None] & inside[None, :]
            acc = dot(tl.load(x, mask=seen, other=0.0), tile_w, acc, EMULATED)
            if PLANES == 2:
                acc = dot(tl.load(x + plane, mask=seen, other=0.0), tile_w, acc, EMULATED)
            x += BK
            w += BK
        if PLANES == 1:
            acc *= tl.load(scale_ptr + position, mask=mine, other=0.0)[:, None]
        if BIASED:
            bias = bias_ptr + expert.to(tl.int64) * bias_stride + row
            acc += tl.load(bias, mask=row < rows, other=0.0)[None, :]
        target = position
        if GROUPED:
            target = tl.load(order_ptr + position, mask=mine, other=0)
        out = out_ptr + target.to(tl.int64)[:, None] * rows + row[None, :]
        write = mine[:, None] & (row < rows)[None, :]
        if ADD:
            acc += tl.load(out, mask=write, other=0.0)
        tl.store(out, acc, mask=write)


@triton.jit
def gemm_hidden(
    x_ptr, scale_ptr, plane, w_ptr, hidden_ptr, order_ptr, experts_ptr, starts_ptr, offsets_ptr,
    bias_ptr, bias_stride, first_expert, last_expert, total, topk,
    COLS: tl.constexpr, INTERMEDIATE: tl.constexpr, PLANES: tl.constexpr,
    GROUPED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EMULATED: tl.constexpr, CLAMPED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """hidden [positions, I] = activation of gate, up; weights [experts, 2 I, COLS], gate first.

    GROUPED, BIASED as in gemm, with the input row order[position] // topk.
    """
    tile = tl.program_id(0)
    expert, begin, end = tile_span(experts_ptr, starts_ptr, offsets_ptr, tile, total, GROUPED, BM)
    if (expert >= first_expert) & (expert < last_expert):
        position = begin + tl.arange(0, BM)
        mine = position < end
        token = position
        if GROUPED:
            token = tl.load(order_ptr + position, mask=mine, other=0) // topk
        row = tl.program_id(1) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        x = x_ptr + token.to(tl.int64)[:, None] * COLS + k[None, :]
        matrix = (expert - first_expert).to(tl.int64) * (2 * INTERMEDIATE)
        w = w_ptr + (matrix + row)[None, :].to(tl.int64) * COLS + k[:, None]
        gate = tl.zeros([BM, BN], tl.float32)
        up = tl.zeros([BM, BN], tl.float32)
        for at in range(0, COLS, BK):
            inside = k < COLS - at
            stored = inside[:, None] & (row < INTERMEDIATE)[None, :]
            gate_w = tl.load(w, mask=stored, other=0.0)
            up_w = tl.load(w + INTERMEDIATE * COLS, mask=stored, other=0.0)
            seen = mine[:, None] & inside[None, :]
            tile_x = tl.load(x, mask=seen, other=0.0)
            gate = dot(tile_x, gate_w, gate, EMULATED)
            up = dot(tile_x, up_w, up, EMULATED)
            if PLANES == 2:
                tile_x = tl.load(x + plane, mask=seen, other=0.0)
                gate = dot(tile_x, gate_w, gate, EMULATED)
                up = dot(tile_x, up_w, up, EMULATED)
            x += BK
            w += BK
        if PLANES == 1:
            scale = tl.load(scale_ptr + token, mask=mine, other=0.0)[:, None]
            gate *= scale
            up *= scale
        if BIASED:
            bias = bias_ptr + expert.to(tl.int64) * bias_stride
            gate_bias, up_bias = gate_biases(bias, row, row < INTERMEDIATE)
            gate += gate_bias[None, :]
            up += up_bias[None, :]
        out = hidden_ptr + position.to(tl.int64)[:, None] * INTERMEDIATE + row[None, :]
        tl.store(
            out, activated(gate, up, CLAMPED), mask=mine[:, None] & (row < INTERMEDIATE)[None, :]
        )
