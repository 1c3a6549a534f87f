"""Row operations: norms, rotation, storing keys and values, gates, convolution."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x_ptr, w_ptr, out_ptr, eps, x_stride, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """out [T, COLS] = x / rms(x) * w, rows of x lying x_stride apart; grid (T)."""
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + t * x_stride + at, mask=at < COLS, other=0.0)
    w = tl.load(w_ptr + at, mask=at < COLS, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / COLS + eps)
    tl.store(out_ptr + t * COLS + at, x * scale * w, mask=at < COLS)


@triton.jit
def gated_rms_norm(x_ptr, gate_ptr, w_ptr, eps, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """x [N, COLS] = x / rms(x) * w * silu(gate), in place; grid (N)."""
    row = tl.program_id(0).to(tl.int64) * COLS
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + at, mask=at < COLS, other=0.0)
    w = tl.load(w_ptr + at, mask=at < COLS, other=0.0)
    g = tl.load(gate_ptr + row + at, mask=at < COLS, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / COLS + eps)
    tl.store(x_ptr + row + at, x * scale * w * (g / (1.0 + tl.exp(-g))), mask=at < COLS)


@triton.jit
def rotated_row(
    x_ptr, w_ptr, cos_ptr, sin_ptr, eps, mine,
    D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows x [N] pointers -> float32 [N, BLOCK]: RMS norm per row, then half-split rotation.

    cos, sin: pointers of N rows of HALF angles. HALF 0: no rotation. Rows not `mine` are zeros.
    """
    at = tl.arange(0, BLOCK)
    inside = mine[:, None] & (at < D)[None, :]
    y = tl.load(x_ptr[:, None] + at[None, :], mask=inside, other=0.0)
    scale = tl.full([x_ptr.shape[0], 1], 1.0, tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(y * y, 1) / D + eps)[:, None]
        y *= scale * tl.load(w_ptr + at, mask=at < D, other=0.0)[None, :]
    if HALF > 0:
        low, turned = at < HALF, at < 2 * HALF
        other = tl.where(low, at + HALF, at - HALF)
        partner = tl.load(x_ptr[:, None] + other[None, :], mask=inside & turned[None, :], other=0.0)
        if NORM:
            partner *= scale * tl.load(w_ptr + other, mask=turned, other=0.0)[None, :]
        angle = tl.where(low, at, at - HALF)
        seen = mine[:, None] & turned[None, :]
        cos = tl.load(cos_ptr[:, None] + angle[None, :], mask=seen, other=1.0)
        sin = tl.load(sin_ptr[:, None] + angle[None, :], mask=seen, other=0.0)
        y = y * cos + tl.where(low[None, :], -partner, partner) * sin
    return y


@triton.jit
def rotate(
    x_ptr, w_ptr, cos_ptr, sin_ptr, out_ptr, eps, stride_t, stride_h, heads,
    D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """out [T, heads, D] = rotated, normed heads of x; grid (heads / ROWS, T)."""
    t = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = head < heads
    turn = t * HALF + head * 0
    y = rotated_row(
        x_ptr + t * stride_t + head * stride_h, w_ptr, cos_ptr + turn, sin_ptr + turn, eps, mine,
        D, HALF, NORM, BLOCK,
    )  # fmt: skip
    at = tl.arange(0, BLOCK)
    out = out_ptr + (t * heads + head)[:, None] * D + at[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=mine[:, None] & (at < D)[None, :])


@triton.jit
def kv_store(
    k_ptr, v_ptr, w_ptr, cos_ptr, sin_ptr, k_cache, v_cache, start_ptr, eps,
    k_stride, v_stride, context, heads,
    D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Rotated, normed keys and the values of token t -> caches [heads, context, D]; grid (T)."""
    t = tl.program_id(0).to(tl.int64)
    store_heads(
        k_ptr + t * k_stride, v_ptr + t * v_stride, w_ptr, cos_ptr + t * HALF, sin_ptr + t * HALF,
        k_cache, v_cache, tl.load(start_ptr) + t, eps, context, tl.arange(0, ROWS), heads,
        D, HALF, NORM, BLOCK,
    )  # fmt: skip


@triton.jit
def store_heads(
    k_ptr, v_ptr, w_ptr, cos_ptr, sin_ptr, k_cache, v_cache, position, eps, context, head, heads,
    D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Heads `head` [N] of one token, k and v [heads, D], into the caches at a position."""
    mine = head < heads
    k = rotated_row(
        k_ptr + head * D, w_ptr, cos_ptr + head * 0, sin_ptr + head * 0, eps, mine,
        D, HALF, NORM, BLOCK,
    )  # fmt: skip
    at = tl.arange(0, BLOCK)
    inside = mine[:, None] & (at < D)[None, :]
    v = tl.load(v_ptr + head[:, None] * D + at[None, :], mask=inside, other=0.0)
    # Modulo only matters to the rings of layers with a window.
    where = (head.to(tl.int64)[:, None] * context + position % context) * D + at[None, :]
    tl.store(k_cache + where, k.to(k_cache.dtype.element_ty), mask=inside)
    tl.store(v_cache + where, v.to(v_cache.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_gate(
    x_ptr, gate_ptr, stride_t, stride_h, heads, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """x [T, heads, D] *= sigmoid(gate); grid (heads, T)."""
    head, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = x_ptr + (t * heads + head) * D + at
    gate = tl.load(gate_ptr + t * stride_t + head * stride_h + at, mask=at < D, other=0.0)
    tl.store(x, tl.load(x, mask=at < D, other=0.0) / (1.0 + tl.exp(-gate)), mask=at < D)


@triton.jit
def causal_conv_silu(
    u_ptr, w_ptr, state_ptr, out_ptr, u_stride, channels,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [T, C] = silu of the causal convolution of u; grid (T, C / BLOCK). Reads the state."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = c < channels
    y = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(WIDTH):
        source = t + tap - (WIDTH - 1)
        new_end = tl.where(source >= 0, channels, 0)
        new = tl.load(u_ptr + source * u_stride + c, mask=c < new_end, other=0.0)
        past = state_ptr + (source + WIDTH - 1) * channels
        old = tl.load(past + c, mask=c < channels - new_end, other=0.0)
        y += (new + old) * tl.load(w_ptr + c * WIDTH + tap, mask=mine, other=0.0)
    tl.store(out_ptr + t * channels + c, y / (1.0 + tl.exp(-y)), mask=mine)


@triton.jit
def conv_state(
    u_ptr, state_ptr, u_stride, tokens, channels, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """state [WIDTH - 1, C] = the newest inputs, oldest first; grid (C / BLOCK)."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = c < channels
    for row in tl.static_range(WIDTH - 1):
        source = tokens - (WIDTH - 1) + row
        # Rows move towards the front, so that none is overwritten before it is read.
        new_end = tl.where(source >= 0, channels, 0)
        past = state_ptr + (row + tokens) * channels
        old = tl.load(past + c, mask=c < channels - new_end, other=0.0)
        new = tl.load(u_ptr + source * u_stride + c, mask=c < new_end, other=0.0)
        tl.store(state_ptr + row * channels + c, old + new, mask=mine)


@triton.jit
def combine(rows_ptr, weights_ptr, out_ptr, COLS: tl.constexpr, TOPK: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """out [T, COLS] += sum over k of weights[t, k] * rows[t * K + k]; grid (T, pieces)."""
    t = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(TOPK):
        weight = tl.load(weights_ptr + t * TOPK + k)
        row = rows_ptr + (t * TOPK + k) * COLS
        total += weight * tl.load(row + at, mask=at < COLS, other=0.0)
    out = out_ptr + t * COLS + at
    tl.store(out, tl.load(out, mask=at < COLS, other=0.0) + total, mask=at < COLS)
