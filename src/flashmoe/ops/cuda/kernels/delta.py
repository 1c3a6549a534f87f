"""The gated delta rule, token by token: the state of a head stays in registers."""

import triton
import triton.language as tl


@triton.jit
def gated_delta(
    qkv_ptr, a_ptr, b_ptr, a_log_ptr, dt_bias_ptr, state_ptr, out_ptr, tokens,
    qkv_stride, ab_stride,
    KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, DK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out [T, Hv, Dv], state [Hv, Dk, Dv] updated; grid (Hv, Dv / BV).

    S <- decay S; S <- S + k (beta (v - k S)); out = q S. Keys and queries have unit length.
    """
    head = tl.program_id(0)
    column = tl.program_id(1) * BV + tl.arange(0, BV)
    d = tl.arange(0, DK)
    known, mine = d < KEY_DIM, column < VALUE_DIM
    q_at = head // (HEADS // KEY_HEADS) * KEY_DIM + d
    k_at = q_at + KEY_HEADS * KEY_DIM
    v_at = 2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM + column
    cell = (head * KEY_DIM + d)[:, None] * VALUE_DIM + column[None, :]
    inside = known[:, None] & mine[None, :]
    state = tl.load(state_ptr + cell, mask=inside, other=0.0)
    rate = tl.exp(tl.load(a_log_ptr + head))
    dt_bias = tl.load(dt_bias_ptr + head)
    row, out = qkv_ptr, out_ptr + head * VALUE_DIM + column
    a_row, b_row = a_ptr + head, b_ptr + head
    for _ in range(tokens):
        q = tl.load(row + q_at, mask=known, other=0.0)
        k = tl.load(row + k_at, mask=known, other=0.0)
        v = tl.load(row + v_at, mask=mine, other=0.0)
        q *= tl.rsqrt(tl.sum(q * q, 0) + 1e-6) * KEY_DIM**-0.5
        k *= tl.rsqrt(tl.sum(k * k, 0) + 1e-6)
        z = tl.load(a_row) + dt_bias
        # softplus without overflow.
        softplus = tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
        beta = 1.0 / (1.0 + tl.exp(-tl.load(b_row)))
        state *= tl.exp(-rate * softplus)
        change = (v - tl.sum(state * k[:, None], 0)) * beta
        state += k[:, None] * change[None, :]
        tl.store(out, tl.sum(state * q[:, None], 0), mask=mine)
        row += qkv_stride
        out += HEADS * VALUE_DIM
        a_row += ab_stride
        b_row += ab_stride
    tl.store(state_ptr + cell, state, mask=inside)
