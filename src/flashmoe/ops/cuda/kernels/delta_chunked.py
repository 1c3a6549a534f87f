"""The gated delta rule over blocks of tokens as dense products (native/cpu/delta/chunked.cpp).

With G_i the summed log decays of a block up to token i, P_ij = exp(G_i - G_j), S the state before
and A_ij = beta_i P_ij (k_i . k_j) for j < i, the corrections are d = u - w S with

    T = (1 + A)^-1,  u = T (beta v),  w = T (beta exp(G) k),

all of which a block can find without its state; then, block after block,

    out_i = exp(G_i) q_i S + sum over j <= i of P_ij (q_i . k_j) d_j
    S     = exp(G_last) S + sum over j of exp(G_last - G_j) k_j d_j.
"""

import triton
import triton.language as tl


@triton.jit
def _dot(a, b):
    # Three TF32 products per float32 one: what is lost is below float32's own rounding of sums.
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def inverse(a, STEP: tl.constexpr):
    """(1 + a)^-1 of a strictly lower triangular a [STEP, STEP], by forward substitution.

    Sums of powers of a would need fewer steps, but cancel where keys are alike.
    """
    i, j = tl.arange(0, STEP)[:, None], tl.arange(0, STEP)[None, :]
    transposed = tl.trans(a)
    result = tl.where(i == j, 1.0, 0.0)
    for row in range(1, STEP):
        factors = tl.sum(tl.where(j == row, transposed, 0.0), 1)
        change = tl.sum(factors[:, None] * result, 0)
        result -= tl.where(i == row, change[None, :], 0.0)
    return result


@triton.jit
def block_decays(a_ptr, b_ptr, a_log_ptr, dt_bias_ptr, head):
    """Pointers [STEP] of the gates of a block's tokens -> G float64, beta float32."""
    z = tl.load(a_ptr) + tl.load(dt_bias_ptr + head)
    softplus = tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
    # Sums in float64: their small differences matter even where they are in the thousands.
    logs = (-tl.exp(tl.load(a_log_ptr + head)) * softplus).to(tl.float64)
    return tl.cumsum(logs, 0), 1.0 / (1.0 + tl.exp(-tl.load(b_ptr)))


@triton.jit
def prepare(
    qkv_ptr, a_ptr, b_ptr, a_log_ptr, dt_bias_ptr, q_out, k_out, w_out, u_out, scores_out, left_out,
    qkv_stride, ab_stride,
    KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """What a block and head can know without the state before; grid (Hv, blocks).

    Per head and block: q [STEP, Dk] exp(G); k exp(G_last - G); w; u [STEP, Dv]; scores
    [STEP, STEP], P_ij (q_i . k_j) for j <= i; left, exp(G_last).
    """
    head, block = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, d, c = tl.arange(0, STEP), tl.arange(0, DK), tl.arange(0, DV)
    known, mine = (d < KEY_DIM)[None, :], (c < VALUE_DIM)[None, :]
    token = block * STEP + i
    row = qkv_ptr + token[:, None] * qkv_stride
    q_at = head // (HEADS // KEY_HEADS) * KEY_DIM + d[None, :]
    q = tl.load(row + q_at, mask=known, other=0.0)
    k = tl.load(row + q_at + KEY_HEADS * KEY_DIM, mask=known, other=0.0)
    v_at = 2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM + c[None, :]
    v = tl.load(row + v_at, mask=mine, other=0.0)
    q *= tl.rsqrt(tl.sum(q * q, 1) + 1e-6)[:, None] * KEY_DIM**-0.5
    k *= tl.rsqrt(tl.sum(k * k, 1) + 1e-6)[:, None]
    gates = token * ab_stride + head
    sums, beta = block_decays(a_ptr + gates, b_ptr + gates, a_log_ptr, dt_bias_ptr, head)
    last = tl.sum(tl.where(i == STEP - 1, sums, 0.0), 0)
    before = i[:, None] >= i[None, :]
    gap = tl.where(before, sums[:, None] - sums[None, :], 0.0).to(tl.float32)
    decay = tl.where(before, tl.exp(gap), 0.0)
    strict = tl.where(i[:, None] > i[None, :], decay * _dot(k, tl.trans(k)), 0.0)
    t = inverse(strict * beta[:, None], STEP)
    scores = decay * _dot(q, tl.trans(k))
    since, until = tl.exp(sums.to(tl.float32)), tl.exp((last - sums).to(tl.float32))
    place = head * tl.num_programs(1).to(tl.int64) + block
    keys = (place * STEP + i)[:, None] * KEY_DIM + d[None, :]
    values = (place * STEP + i)[:, None] * VALUE_DIM + c[None, :]
    tl.store(q_out + keys, q * since[:, None], mask=known)
    tl.store(k_out + keys, k * until[:, None], mask=known)
    tl.store(w_out + keys, _dot(t, k * (beta * since)[:, None]), mask=known)
    tl.store(u_out + values, _dot(t, v * beta[:, None]), mask=mine)
    tl.store(scores_out + (place * STEP + i)[:, None] * STEP + i[None, :], scores)
    tl.store(left_out + place, tl.exp(last.to(tl.float32)))


# One binary whatever the number of blocks: a special one for a single block rounds differently, and
# then the cut of a prompt would show.
@triton.jit(do_not_specialize=["blocks"])
def advance(
    q_ptr, k_ptr, w_ptr, u_ptr, scores_ptr, left_ptr, state_ptr, out_ptr, blocks,
    HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, DK: tl.constexpr,
    BV: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out [T, Hv, Dv], state [Hv, Dk, Dv] updated, block after block; grid (Hv, Dv / BV)."""
    head = tl.program_id(0)
    i, d = tl.arange(0, STEP), tl.arange(0, DK)
    column = tl.program_id(1) * BV + tl.arange(0, BV)
    known, mine = (d < KEY_DIM)[None, :], (column < VALUE_DIM)[None, :]
    cell = (head * KEY_DIM + d)[:, None] * VALUE_DIM + column[None, :]
    inside = (d < KEY_DIM)[:, None] & mine
    state = tl.load(state_ptr + cell, mask=inside, other=0.0)
    place = head.to(tl.int64) * blocks
    out = out_ptr + (i * HEADS + head)[:, None] * VALUE_DIM + column[None, :]
    for _ in range(blocks):
        row = place * STEP + i
        keys = row[:, None] * KEY_DIM + d[None, :]
        w = tl.load(w_ptr + keys, mask=known, other=0.0)
        u = tl.load(u_ptr + row[:, None] * VALUE_DIM + column[None, :], mask=mine, other=0.0)
        change = u - _dot(w, state)
        q = tl.load(q_ptr + keys, mask=known, other=0.0)
        scores = tl.load(scores_ptr + row[:, None] * STEP + i[None, :])
        tl.store(out, _dot(q, state) + _dot(scores, change), mask=mine)
        k = tl.load(k_ptr + keys, mask=known, other=0.0)
        state = state * tl.load(left_ptr + place) + _dot(tl.trans(k), change)
        place += 1
        out += STEP * HEADS * VALUE_DIM
    tl.store(state_ptr + cell, state, mask=inside)
