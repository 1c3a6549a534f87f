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
def float_products(
    words, scale, x_ptr, norm_ptr, k, valid, FORMAT: tl.constexpr, NORM: tl.constexpr
):
    """Weights times inputs in float32, summed within each unit -> [U, 8]; x_ptr: one row."""
    total = tl.zeros([k.shape[0], 8], tl.float32)
    for n in tl.static_range(unit_cols(FORMAT)):
        _, y = load_input(x_ptr, norm_ptr, k, n, valid, FORMAT, NORM)
        total += code(words, n, FORMAT) * y[:, None]
    return total * scale


@triton.jit
def fixed_products(
    words, scale, bias, low, high, low4, high4, step, inputs, EMULATED: tl.constexpr
):
    """The same of q4 units and inputs from fixed_point: integers until scaled."""
    first, second = (words & 0x0F0F0F0F).to(tl.int32), (words >> 4 & 0x0F0F0F0F).to(tl.int32)
    none = tl.zeros(first.shape, tl.int32)
    small = dot4(second, low4, dot4(first, low, none, EMULATED), EMULATED)
    large = dot4(second, high4, dot4(first, high, none, EMULATED), EMULATED)
    exact = (large * 256 + small).to(tl.float32)
    return exact * step[:, None] * scale + inputs[:, None] * bias


@triton.jit
def load_fixed(x_ptr, norm_ptr, k, valid, NORM: tl.constexpr):
    """Columns of q4 units k [U] of x (times norm) through fixed_point, and their squares summed."""
    at = k[:, None] * 8 + tl.arange(0, 8)[None, :]
    x = tl.load(x_ptr + at, mask=valid[:, None], other=0.0)
    y = x
    if NORM:
        y *= tl.load(norm_ptr + at, mask=valid[:, None], other=0.0)
    low, high, low4, high4, step, inputs = fixed_point(y)
    return low, high, low4, high4, step, inputs, tl.sum(x * x, 1)


@triton.jit
def fixed_point(y):
    """Numbers y [U, 8] as 16-bit integers of one step per unit.

    -> low and high bytes of columns 0 to 3, four to a word, then of 4 to 7; the step [U]; the sum
    of the eight as they are [U]. The step is a part in 32512 of the largest: as good as exact, at
    the price of integer products.
    """
    at = tl.arange(0, 8)[None, :]
    largest = tl.maximum(tl.max(tl.abs(y), 1), 1e-30)
    low, high = two_bytes(y * (32512.0 / largest)[:, None])
    low, high = low << (at % 4 * 8), high << (at % 4 * 8)
    inputs = tl.sum(y, 1)
    # A NaN or infinity among the inputs must not become a number.
    step = largest * (1.0 / 32512.0) + inputs * 0.0
    return (
        _join(low, at < 4),
        _join(high, at < 4),
        _join(low, at > 3),
        _join(high, at > 3),
        step,
        inputs,
    )


@triton.jit
def _join(shifted, chosen):
    """Bytes [U, 8], each in a place of its own, of the chosen columns -> words [U]."""
    return tl.sum(tl.where(chosen, shifted, 0), 1)


@triton.jit
def store_fixed(codes_ptr, units, k, valid, low, high, low4, high4, step, inputs):
    """What fixed_point makes of units k of a row -> codes [6, units] int32; see load_codes."""
    at = codes_ptr + k
    tl.store(at, low, mask=valid)
    tl.store(at + units, high, mask=valid)
    tl.store(at + 2 * units, low4, mask=valid)
    tl.store(at + 3 * units, high4, mask=valid)
    tl.store(at + 4 * units, step.to(tl.int32, bitcast=True), mask=valid)
    tl.store(at + 5 * units, inputs.to(tl.int32, bitcast=True), mask=valid)


@triton.jit
def load_codes(codes_ptr, units, k, valid):
    """Units k [U] of a row that store_fixed has written; codes_ptr: one row, or one per unit."""
    at = codes_ptr + k
    low = tl.load(at, mask=valid, other=0)
    high = tl.load(at + units, mask=valid, other=0)
    low4 = tl.load(at + 2 * units, mask=valid, other=0)
    high4 = tl.load(at + 3 * units, mask=valid, other=0)
    step = tl.load(at + 4 * units, mask=valid, other=0).to(tl.float32, bitcast=True)
    inputs = tl.load(at + 5 * units, mask=valid, other=0).to(tl.float32, bitcast=True)
    return low, high, low4, high4, step, inputs


@triton.jit
def two_bytes(y):
    """|y| <= 32512, rounded to an integer low + 256 high -> both as bits of a signed byte."""
    # 1.5 * 2^23 leaves the integer, rounded half to even, in the lowest bits.
    integer = (y + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    return integer & 255, (integer + 128 >> 8) & 255


@triton.jit
def dot4(codes, inputs, total, EMULATED: tl.constexpr):
    """total + the products of four signed bytes, summed: codes [U, 8], inputs [U] -> [U, 8]."""
    if EMULATED:
        for j in tl.static_range(4):
            total += (codes >> (8 * j) & 255) * (inputs << (24 - 8 * j) >> 24)[:, None]
    else:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, inputs[:, None], total],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return total


@triton.jit
def two_blocks(
    w_ptr, off0, off1, x_ptr, norm_ptr, units, k, valid, stored0, stored1,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, CODED: tl.constexpr,
    PAIR: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Units k [U] of the blocks at off0 and (if PAIR) off1 times the inputs.

    -> the products [U, 8] of each, and the squares of the inputs [U] (if NORM). valid, stored:
    which units have inputs, weights. CODED: x is a row of codes (see load_codes), for q4 only.
    """
    words0, scale0, bias0 = stored_units(w_ptr, off0, k, stored0, FORMAT, GROUP)
    words1, scale1, bias1 = words0, scale0, bias0
    if PAIR:
        words1, scale1, bias1 = stored_units(w_ptr, off1, k, stored1, FORMAT, GROUP)
    squares = tl.zeros([k.shape[0]], tl.float32)
    if FORMAT == "q4":
        if CODED:
            low, high, low4, high4, step, inputs = load_codes(x_ptr, units, k, valid)
        else:
            low, high, low4, high4, step, inputs, squares = load_fixed(
                x_ptr, norm_ptr, k, valid, NORM
            )
        sums0 = fixed_products(
            words0, scale0, bias0, low, high, low4, high4, step, inputs, EMULATED
        )
        sums1 = sums0
        if PAIR:
            sums1 = fixed_products(
                words1, scale1, bias1, low, high, low4, high4, step, inputs, EMULATED
            )
    else:
        sums0 = float_products(words0, scale0, x_ptr, norm_ptr, k, valid, FORMAT, NORM)
        sums1 = sums0
        if PAIR:
            sums1 = float_products(words1, scale1, x_ptr, norm_ptr, k, valid, FORMAT, NORM)
        if NORM:
            squares = input_squares(x_ptr, k, valid, FORMAT)
    return sums0, sums1, squares


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
    CODED: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr, PAIR: tl.constexpr,
    UNITS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """out [T, rows] (+)= norm(x [T, COLS]) @ W.T for up to four matrices of one format.

    Grid (row blocks, or PAIRs of them, T). n0..n3: blocks of each matrix; o1..o3: words from the
    first to each. SCALED: row t is multiplied by row_scale[t]. CODED: x is codes [T, 6, units].
    """
    first, t = tl.program_id(0) * (2 if PAIR else 1), tl.program_id(1).to(tl.int64)
    words: tl.constexpr = block_words(COLS, FORMAT, GROUP)
    units: tl.constexpr = COLS // unit_cols(FORMAT)
    align: tl.constexpr = block_align(FORMAT)
    x_ptr += t * (6 * units if CODED else COLS)
    off0, units0 = locate(first, n0, n1, n2, n3, o1, o2, o3, words, units, align)
    off1, units1 = locate(first + 1, n0, n1, n2, n3, o1, o2, o3, words, units, align)
    k = tl.arange(0, UNITS)
    sums0, sums1, squares = two_blocks(
        w_ptr, off0, off1, x_ptr, norm_ptr, units, k, k < units, k < units0, k < units1,
        FORMAT, GROUP, NORM, CODED, PAIR, EMULATED,
    )  # fmt: skip
    for begin in range(UNITS, units, UNITS):
        k = begin + tl.arange(0, UNITS)
        more0, more1, more = two_blocks(
            w_ptr, off0, off1, x_ptr, norm_ptr, units, k, k < units, k < units0, k < units1,
            FORMAT, GROUP, NORM, CODED, PAIR, EMULATED,
        )  # fmt: skip
        sums0, sums1, squares = sums0 + more0, sums1 + more1, squares + more
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
def store_normed(
    x_ptr, norm_ptr, out_ptr, codes_ptr, scale, k, COLS: tl.constexpr
):  # fmt: skip
    """Columns 8 k.. of out [COLS] = x * scale * norm, and the same as codes (see load_codes)."""
    units: tl.constexpr = COLS // 8
    valid = k < units
    at = k[:, None] * 8 + tl.arange(0, 8)[None, :]
    x = tl.load(x_ptr + at, mask=valid[:, None], other=0.0)
    w = tl.load(norm_ptr + at, mask=valid[:, None], other=0.0)
    y = x * scale * w
    tl.store(out_ptr + at, y, mask=valid[:, None])
    low, high, low4, high4, step, inputs = fixed_point(y)
    store_fixed(codes_ptr, units, k, valid, low, high, low4, high4, step, inputs)
