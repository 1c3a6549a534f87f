"""Products of one or a few rows with stored matrices: every weight is read once per row.

A program makes a few blocks of 8 results. The RMS norm of the input may be part of the product:
the sum of squares runs along with it and scales the result, so that nothing waits for a norm.
"""

import triton
import triton.language as tl

from flashmoe.ops.cuda.kernels.weights import (
    block_align,
    block_words,
    code,
    load_bias,
    load_scale,
    load_words,
    unit_cols,
    unit_column,
)


@triton.jit
def load_input(
    x_ptr, norm_ptr, k, n: tl.constexpr, valid, FORMAT: tl.constexpr, NORM: tl.constexpr
):
    """The inputs that value n of units k [U] meets, and the same times the norm's weight."""
    at = k * unit_cols(FORMAT) + unit_column(n, FORMAT)
    x = tl.load(x_ptr + at, mask=valid, other=0.0)
    y = x
    if NORM:
        y = x * tl.load(norm_ptr + at, mask=valid, other=0.0)
    return x, y


@triton.jit
def stored_units(w_ptr, off, k, stored, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Words, scales and biases [U, 8] of units k [U] of a block; zeros where not stored."""
    words = load_words(w_ptr, off, k, stored, FORMAT, GROUP)
    scale = load_scale(w_ptr, off, k, stored, FORMAT, GROUP)
    bias = load_bias(w_ptr, off, k, stored, FORMAT, GROUP)
    return words, scale, bias


@triton.jit
def unit_products(
    words, scale, bias, x_ptr, norm_ptr, k, valid, FORMAT: tl.constexpr, NORM: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """Weights times inputs, summed within each unit -> [U, 8]. x_ptr: one row, or one per unit."""
    if FORMAT == "q4":
        low, high, step, inputs = fixed_point(x_ptr, norm_ptr, k, 0, valid, NORM)
        low4, high4, step4, inputs4 = fixed_point(x_ptr, norm_ptr, k, 4, valid, NORM)
        first, second = (words & 0x0F0F0F0F).to(tl.int32), (words >> 4 & 0x0F0F0F0F).to(tl.int32)
        total = fixed_dot(first, low, high, EMULATED) * step[:, None]
        total += fixed_dot(second, low4, high4, EMULATED) * step4[:, None]
        result = total * scale + (inputs + inputs4)[:, None] * bias
    else:
        total = tl.zeros([k.shape[0], 8], tl.float32)
        for n in tl.static_range(unit_cols(FORMAT)):
            _, y = load_input(x_ptr, norm_ptr, k, n, valid, FORMAT, NORM)
            total += code(words, n, FORMAT) * y[:, None]
        result = total * scale
    return result


@triton.jit
def fixed_point(x_ptr, norm_ptr, k, first: tl.constexpr, valid, NORM: tl.constexpr):
    """Columns first..first + 3 of q4 units k [U] of x (times norm) as 16-bit numbers of one step.

    -> low and high bytes, four to a word; the step [U]; the sum of the four as they are [U]. The
    step is a part in 32512 of the largest: as good as exact, at the price of integer products.
    """
    at = x_ptr + k * 8 + first
    a, b = tl.load(at, mask=valid, other=0.0), tl.load(at + 1, mask=valid, other=0.0)
    c, d = tl.load(at + 2, mask=valid, other=0.0), tl.load(at + 3, mask=valid, other=0.0)
    if NORM:
        at = norm_ptr + k * 8 + first
        a *= tl.load(at, mask=valid, other=0.0)
        b *= tl.load(at + 1, mask=valid, other=0.0)
        c *= tl.load(at + 2, mask=valid, other=0.0)
        d *= tl.load(at + 3, mask=valid, other=0.0)
    inputs = (a + b) + (c + d)
    largest = tl.maximum(
        tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.maximum(tl.abs(d), 1e-30))
    )
    inverse = 32512.0 / largest
    a_low, a_high = two_bytes(a * inverse)
    b_low, b_high = two_bytes(b * inverse)
    c_low, c_high = two_bytes(c * inverse)
    d_low, d_high = two_bytes(d * inverse)
    low = a_low | (b_low << 8) | (c_low << 16) | (d_low << 24)
    high = a_high | (b_high << 8) | (c_high << 16) | (d_high << 24)
    # A NaN or infinity among the inputs must not become a number.
    return low, high, largest * (1.0 / 32512.0) + inputs * 0.0, inputs


@triton.jit
def two_bytes(y):
    """|y| <= 32512, rounded to an integer low + 256 high -> both as bits of a signed byte."""
    # 1.5 * 2^23 leaves the integer, rounded half to even, in the lowest bits.
    integer = (y + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    return integer & 255, (integer + 128 >> 8) & 255


@triton.jit
def fixed_dot(codes, low, high, EMULATED: tl.constexpr):
    """codes [U, 8] (four bytes from 0 to 15) times four 16-bit inputs [U] -> float32, exactly."""
    small = dot4(codes, low, EMULATED)
    large = dot4(codes, high, EMULATED)
    return (large * 256 + small).to(tl.float32)


@triton.jit
def dot4(codes, inputs, EMULATED: tl.constexpr):
    """Sum of the products of four signed bytes: codes [U, 8], inputs [U] -> int32 [U, 8]."""
    if EMULATED:
        total = tl.zeros(codes.shape, tl.int32)
        for j in tl.static_range(4):
            total += (codes >> (8 * j) & 255) * (inputs << (24 - 8 * j) >> 24)[:, None]
    else:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [codes, inputs[:, None]],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return total


@triton.jit
def block_products(
    w_ptr, off, x_ptr, norm_ptr, k, valid, stored,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """stored_units and their unit_products; valid, stored [U]: which units have inputs, weights."""
    words, scale, bias = stored_units(w_ptr, off, k, stored, FORMAT, GROUP)
    return unit_products(words, scale, bias, x_ptr, norm_ptr, k, valid, FORMAT, NORM, EMULATED)


@triton.jit
def input_squares(x_ptr, k, valid, FORMAT: tl.constexpr):
    """Squares of the inputs, summed within each of the units k [U]."""
    squares = tl.zeros([k.shape[0]], tl.float32)
    for n in tl.static_range(unit_cols(FORMAT)):
        x, _ = load_input(x_ptr, x_ptr, k, n, valid, FORMAT, False)
        squares += x * x
    return squares


@triton.jit
def locate(block, n0, n1, n2, n3, o1, o2, o3, words, units, ALIGN: tl.constexpr):
    """Where a block lies among up to four matrices of n blocks -> its word, its units (or none)."""
    off = block.to(tl.int64) * words
    off = tl.where(block < n0, off, o1 + (block - n0).to(tl.int64) * words)
    off = tl.where(block < n0 + n1, off, o2 + (block - n0 - n1).to(tl.int64) * words)
    off = tl.where(block < n0 + n1 + n2, off, o3 + (block - n0 - n1 - n2).to(tl.int64) * words)
    return tl.multiple_of(off, ALIGN), tl.where(block < n0 + n1 + n2 + n3, units, 0)


@triton.jit
def gemv(
    x_ptr, norm_ptr, w_ptr, out_ptr, row_scale_ptr, eps,
    n0, n1, n2, n3, o1, o2, o3, rows,
    COLS: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    ADD: tl.constexpr, SCALED: tl.constexpr, PAIR: tl.constexpr, UNITS: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """out [T, rows] (+)= norm(x [T, COLS]) @ W.T for up to four matrices of one format.

    Grid (row blocks, or PAIRs of them, T). n0..n3: blocks of each matrix; o1..o3: words from the
    first to each. SCALED: row t is multiplied by row_scale[t].
    """
    first, t = tl.program_id(0) * (2 if PAIR else 1), tl.program_id(1).to(tl.int64)
    words: tl.constexpr = block_words(COLS, FORMAT, GROUP)
    units: tl.constexpr = COLS // unit_cols(FORMAT)
    align: tl.constexpr = block_align(FORMAT)
    x_ptr += t * COLS
    k = tl.arange(0, UNITS)
    off0, units0 = locate(first, n0, n1, n2, n3, o1, o2, o3, words, units, align)
    words0, scale0, bias0 = stored_units(w_ptr, off0, k, k < units0, FORMAT, GROUP)
    if PAIR:
        off1, units1 = locate(first + 1, n0, n1, n2, n3, o1, o2, o3, words, units, align)
        words1, scale1, bias1 = stored_units(w_ptr, off1, k, k < units1, FORMAT, GROUP)
    valid = k < units
    sums0 = unit_products(words0, scale0, bias0, x_ptr, norm_ptr, k, valid, FORMAT, NORM, EMULATED)
    if PAIR:
        sums1 = unit_products(
            words1, scale1, bias1, x_ptr, norm_ptr, k, valid, FORMAT, NORM, EMULATED
        )
    if NORM:
        squares = input_squares(x_ptr, k, valid, FORMAT)
    for begin in range(UNITS, units, UNITS):
        k = begin + tl.arange(0, UNITS)
        valid = k < units
        sums0 += block_products(
            w_ptr, off0, x_ptr, norm_ptr, k, valid, k < units0, FORMAT, GROUP, NORM, EMULATED
        )
        if PAIR:
            sums1 += block_products(
                w_ptr, off1, x_ptr, norm_ptr, k, valid, k < units1, FORMAT, GROUP, NORM, EMULATED
            )
        if NORM:
            squares += input_squares(x_ptr, k, valid, FORMAT)
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / COLS + eps)
    if SCALED:
        scale *= tl.load(row_scale_ptr + t)
    row = first * 8 + tl.arange(0, 8)
    store_block(out_ptr + t * rows, row, rows, tl.sum(sums0, 0) * scale, ADD)
    if PAIR:
        store_block(out_ptr + t * rows, row + 8, rows, tl.sum(sums1, 0) * scale, ADD)


@triton.jit
def store_block(out_ptr, row, rows, values, ADD: tl.constexpr):
    """Write, or add, 8 results."""
    if ADD:
        values += tl.load(out_ptr + row, mask=row < rows, other=0.0)
    tl.store(out_ptr + row, values, mask=row < rows)


@triton.jit
def store_normed(x_ptr, norm_ptr, out_ptr, scale, COLS: tl.constexpr):
    """out [COLS] = x * scale * norm."""
    for begin in range(0, COLS, 1024):
        at = begin + tl.arange(0, 1024)
        x = tl.load(x_ptr + at, mask=at < COLS, other=0.0)
        w = tl.load(norm_ptr + at, mask=at < COLS, other=0.0)
        tl.store(out_ptr + at, x * scale * w, mask=at < COLS)
