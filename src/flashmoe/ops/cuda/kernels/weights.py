"""Stored weights to numbers: units of 4 bytes, in each format."""

import triton
import triton.language as tl

# Small integers become floats by writing them into the mantissa of 2^23: exact, and at full rate
# where the conversion instruction runs at a quarter of it.
_MAGIC = tl.constexpr(0x4B000000)
_MAGIC_FLOAT = tl.constexpr(8388608.0)
# Twice the magnitudes of mxfp4 codes, four bits each, the code 0 lowest; written into the mantissa
# of 2^22, whose steps are halves.
_MAGNITUDES = tl.constexpr(0xC8643210)
_HALVES = tl.constexpr(0x4A800000)
_HALVES_FLOAT = tl.constexpr(4194304.0)


# Levels of q2 and q3 (quant/codebook.py) plus 128, a byte each, that of the lowest code lowest; of
# q3 the first four and the last four.
_LEVELS2 = tl.constexpr(0x9E897762)
_LEVELS3_LOW = tl.constexpr(0x7C746A5D)
_LEVELS3_HIGH = tl.constexpr(0xA3968C84)
# Their scale bytes are the bits 27 to 20 of a float32 less this.
_SCALE_BASE = tl.constexpr(792)


@triton.constexpr_function
def unit_cols(fmt):
    """Columns in a unit: a word of 4 bytes, for q3 one and a half."""
    return {"q2": 16, "q3": 16, "q4": 8, "mxfp4": 8, "q8": 4, "bf16": 2}[fmt]


@triton.constexpr_function
def codebook_words(fmt, group):
    """Words of the codes of a group in a block of q2 or q3; two of scales follow."""
    return group // 2 if fmt == "q2" else group // 4 * 3


@triton.constexpr_function
def block_words(cols, fmt, group):
    """Words of a block of 8 rows."""
    if fmt == "q2" or fmt == "q3":
        return cols // group * (codebook_words(fmt, group) + 2)
    if fmt == "q4":
        return cols // group * (group + 8)
    if fmt == "mxfp4":
        return cols // group * (group + 2)
    return cols // group * (2 * group + 8) if fmt == "q8" else cols * 4


@triton.constexpr_function
def unit_column(n, fmt):
    """Which of its unit's columns value n is: 4-bit formats pair columns j and j + 4 in byte j,
    those of 2 and 3 bits have four columns j, j + 4, j + 8 and j + 12 there."""
    if unit_cols(fmt) == 16:
        return n % 4 * 4 + n // 4
    return n % 2 * 4 + n // 2 if unit_cols(fmt) == 8 else n


@triton.constexpr_function
def block_align(fmt):
    """Words that the beginning of a block is a multiple of, whatever its length."""
    return 2 if fmt in ("mxfp4", "q2", "q3") else 8


@triton.jit
def load_words(w_ptr, off, k, valid, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Units k [U] of the block at word `off` -> uint32 [U, 8]; zeros where not valid.

    For q3 uint64, the low bits of the codes below the high ones, which two units share a word of.
    """
    at = k * 8
    if FORMAT == "q2":
        at += k // (GROUP // 16) * 2
    elif FORMAT == "q3":
        at += k // 2 * 8 + k // (GROUP // 16) * 2
    if FORMAT == "q4":
        at += k // (GROUP // 8) * 8
    elif FORMAT == "mxfp4":
        at += k // (GROUP // 8) * 2
    elif FORMAT == "q8":
        at += k // (GROUP // 4) * 8
    r = tl.arange(0, 8)
    words = tl.load(w_ptr + off + at[:, None] + r[None, :], mask=valid[:, None], other=0)
    words = words.to(tl.uint32, bitcast=True)
    if FORMAT == "q3":
        at += 16 - k % 2 * 8
        high = tl.load(w_ptr + off + at[:, None] + r[None, :], mask=valid[:, None], other=0)
        high = high.to(tl.uint32, bitcast=True) >> (k % 2 * 4)[:, None].to(tl.uint32)
        words = words.to(tl.uint64) | (high & 0x0F0F0F0F).to(tl.uint64) << 32
    return words


@triton.jit
def load_scale(w_ptr, off, k, valid, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Scales of the groups that units k [U] belong to -> float32 [U, 8]; 1 without groups."""
    r = tl.arange(0, 8)
    if FORMAT == "q4":
        group = off + k // (GROUP // 8) * (GROUP + 8) + GROUP
        at = group[:, None] * 2 + r[None, :]
        bits = tl.load(w_ptr.to(tl.pointer_type(tl.uint16)) + at, mask=valid[:, None], other=0)
        scale = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif FORMAT == "mxfp4":
        group = off + k // (GROUP // 8) * (GROUP + 2) + GROUP
        at = group[:, None] * 4 + r[None, :]
        bits = tl.load(w_ptr.to(tl.pointer_type(tl.uint8)) + at, mask=valid[:, None], other=0)
        # 2^(s - 127) is its exponent field; s = 0 is a denormal number.
        bits = bits.to(tl.uint32)
        scale = tl.where(bits == 0, 0x00400000, bits << 23).to(tl.float32, bitcast=True)
    elif FORMAT == "q2" or FORMAT == "q3":
        codes: tl.constexpr = codebook_words(FORMAT, GROUP)
        group = off + k // (GROUP // 16) * (codes + 2) + codes
        at = group[:, None] * 4 + r[None, :]
        bits = tl.load(w_ptr.to(tl.pointer_type(tl.uint8)) + at, mask=valid[:, None], other=0)
        scale = (bits.to(tl.uint32) + _SCALE_BASE << 20).to(tl.float32, bitcast=True)
    elif FORMAT == "q8":
        group = off + k // (GROUP // 4) * (2 * GROUP + 8) + 2 * GROUP
        at = group[:, None] + r[None, :]
        scale = tl.load(w_ptr.to(tl.pointer_type(tl.float32)) + at, mask=valid[:, None], other=0.0)
    else:
        scale = tl.full([k.shape[0], 8], 1.0, tl.float32)
    return scale


@triton.jit
def load_bias(w_ptr, off, k, valid, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Biases of q4 groups, as load_scale; zeros for other formats."""
    if FORMAT == "q4":
        group = off + k // (GROUP // 8) * (GROUP + 8) + GROUP + 4
        at = group[:, None] * 2 + tl.arange(0, 8)[None, :]
        bits = tl.load(w_ptr.to(tl.pointer_type(tl.uint16)) + at, mask=valid[:, None], other=0)
        bias = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        bias = tl.zeros([k.shape[0], 8], tl.float32)
    return bias


@triton.jit
def code(words, n: tl.constexpr, FORMAT: tl.constexpr):
    """Value n of each unit, before scale and bias -> float32 of the shape of words."""
    if FORMAT == "q4":
        value = ((words >> (4 * n) & 15) | _MAGIC).to(tl.float32, bitcast=True) - _MAGIC_FLOAT
    elif FORMAT == "mxfp4":
        nibble = words >> (4 * n) & 15
        twice = tl.full(words.shape, _MAGNITUDES, tl.uint32) >> ((nibble & 7) * 4) & 15
        value = (twice | _HALVES).to(tl.float32, bitcast=True) - _HALVES_FLOAT
        # The sign is kept for zeros too.
        value = (value.to(tl.uint32, bitcast=True) | (nibble & 8) << 28).to(
            tl.float32, bitcast=True
        )
    elif FORMAT == "q2":
        level = tl.full(words.shape, _LEVELS2, tl.uint32) >> ((words >> (2 * n) & 3) * 8) & 255
        value = (level | _MAGIC).to(tl.float32, bitcast=True) - (_MAGIC_FLOAT + 128.0)
    elif FORMAT == "q3":
        low = words.to(tl.uint32) >> (2 * n) & 3
        high = (words >> 32).to(tl.uint32) >> (n // 4 * 8 + n % 4) & 1
        levels = tl.where(high == 0, tl.full(low.shape, _LEVELS3_LOW, tl.uint32), _LEVELS3_HIGH)
        value = (levels >> (low * 8) & 255 | _MAGIC).to(tl.float32, bitcast=True) - (
            _MAGIC_FLOAT + 128.0
        )
    elif FORMAT == "q8":
        # Signed bytes, shifted to 0..255 by flipping the sign bit.
        byte = (words >> (8 * n) & 255) ^ 128
        value = (byte | _MAGIC).to(tl.float32, bitcast=True) - (_MAGIC_FLOAT + 128.0)
    elif n == 0:
        value = (words << 16).to(tl.float32, bitcast=True)
    else:
        value = (words & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _four(words, n: tl.constexpr, FORMAT: tl.constexpr):
    """Values n to n + 3 of units of 16 -> [..., 2, 2]: of every fourth column, in order."""
    even = tl.join(code(words, n, FORMAT), code(words, n + 2, FORMAT))
    odd = tl.join(code(words, n + 1, FORMAT), code(words, n + 3, FORMAT))
    return tl.join(even, odd)


@triton.jit
def unit_values(w_ptr, off, k, valid, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Decoded weights of units k [U] of a block -> float32 [U, 8, columns of a unit]."""
    words = load_words(w_ptr, off, k, valid, FORMAT, GROUP)
    scale = load_scale(w_ptr, off, k, valid, FORMAT, GROUP)
    bias = load_bias(w_ptr, off, k, valid, FORMAT, GROUP)
    # join adds an inner axis: columns come out in order when the axes go from high bit to low.
    if unit_cols(FORMAT) == 16:
        outer = tl.join(_four(words, 0, FORMAT), _four(words, 8, FORMAT))
        inner = tl.join(_four(words, 4, FORMAT), _four(words, 12, FORMAT))
        values = tl.reshape(tl.join(outer, inner), [k.shape[0], 8, 16]) * scale[:, :, None]
    elif unit_cols(FORMAT) == 8:
        v00 = tl.join(code(words, 0, FORMAT), code(words, 1, FORMAT))
        v01 = tl.join(code(words, 2, FORMAT), code(words, 3, FORMAT))
        v10 = tl.join(code(words, 4, FORMAT), code(words, 5, FORMAT))
        v11 = tl.join(code(words, 6, FORMAT), code(words, 7, FORMAT))
        joined = tl.join(tl.join(v00, v10), tl.join(v01, v11))
        values = tl.reshape(joined, [k.shape[0], 8, 8])
        values = values * scale[:, :, None]
        if FORMAT == "q4":
            values += bias[:, :, None]
    elif FORMAT == "q8":
        even = tl.join(code(words, 0, FORMAT), code(words, 2, FORMAT))
        odd = tl.join(code(words, 1, FORMAT), code(words, 3, FORMAT))
        values = tl.reshape(tl.join(even, odd), [k.shape[0], 8, 4]) * scale[:, :, None]
    else:
        values = tl.join(code(words, 0, FORMAT), code(words, 1, FORMAT))
    return values
