// A unit of the 8-row block is two vectors: rows 0 to 3 and rows 4 to 7, 4 bytes of each, which is
// what the dot product instruction sums into one lane per row. Tokens go through in tiles that
// share each weight load; every token of a tile has accumulators of its own, so its arithmetic does
// not depend on its neighbours.
#include <arm_neon.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/linear/linear.h"
#include "cpu/simd/exp_neon.h"

namespace flashmoe {
namespace {

constexpr int kHalves = 2;

int8x16_t load_codes(const int8_t* codes) { return vld1q_s8(codes); }

// Four bf16 values as float.
float32x4_t load_bf16(const uint8_t* bytes) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(bytes)), 16));
}

float32x4_t load_float(const uint8_t* bytes) { return vreinterpretq_f32_u8(vld1q_u8(bytes)); }

// Codes, scales and sums of the kTokens activation rows of a tile.
template <int kTokens>
struct Tile {
    const int8_t* codes[kTokens];
    const float* scales[kTokens];
    const float* sums[kTokens];

    Tile(const Rows& rows, int64_t group, int64_t first) {
        const int64_t groups = rows.cols / group;
        for (int t = 0; t < kTokens; ++t) {
            const int64_t row = rows.at(first + t);
            codes[t] = rows.codes + row * rows.cols;
            scales[t] = rows.scales + row * groups;
            sums[t] = rows.sums + row * groups;
        }
    }
};

// Per token and half of the block, one lane per row.
template <int kTokens>
using Ints = int32x4_t[kTokens][kHalves];
template <int kTokens>
using Floats = float32x4_t[kTokens][kHalves];

// Adds the products of a unit's weights with lane kLane of x, 4 activation codes per token.
template <int kLane, int kTokens>
[[gnu::always_inline]] inline void add_unit(const int8x16_t (&w)[kHalves],
                                            const int8x16_t (&x)[kTokens], Ints<kTokens>& dot) {
    for (int t = 0; t < kTokens; ++t)
        for (int h = 0; h < kHalves; ++h) dot[t][h] = vdotq_laneq_s32(dot[t][h], w[h], x[t], kLane);
}

// One unit of q4: 8 columns, the first 4 in the low nibbles.
template <int kLane, int kTokens>
[[gnu::always_inline]] inline void add_q4(const uint8_t* bytes, const int8x16_t (&x)[kTokens],
                                          Ints<kTokens>& dot) {
    int8x16_t low[kHalves], high[kHalves];
    for (int h = 0; h < kHalves; ++h) {
        const uint8x16_t pair = vld1q_u8(bytes + 16 * h);
        low[h] = vreinterpretq_s8_u8(vandq_u8(pair, vdupq_n_u8(15)));
        high[h] = vreinterpretq_s8_u8(vshrq_n_u8(pair, 4));
    }
    add_unit<kLane>(low, x, dot);
    add_unit<kLane + 1>(high, x, dot);
}

template <int kLane, int kTokens>
[[gnu::always_inline]] inline void add_q8(const uint8_t* bytes, const int8x16_t (&x)[kTokens],
                                          Ints<kTokens>& dot) {
    int8x16_t w[kHalves];
    for (int h = 0; h < kHalves; ++h) w[h] = vreinterpretq_s8_u8(vld1q_u8(bytes + 16 * h));
    add_unit<kLane>(w, x, dot);
}

// acc += scale of row and token * dot.
template <int kTokens>
[[gnu::always_inline]] inline void add_scaled(const float32x4_t (&scale)[kHalves],
                                              const Tile<kTokens>& tile, int64_t g,
                                              const Ints<kTokens>& dot, Floats<kTokens>& acc) {
    for (int t = 0; t < kTokens; ++t)
        for (int h = 0; h < kHalves; ++h) {
            const float32x4_t step = vmulq_n_f32(scale[h], tile.scales[t][g]);
            acc[t][h] = vfmaq_f32(acc[t][h], step, vcvtq_f32_s32(dot[t][h]));
        }
}

template <int kTokens>
void store(const Floats<kTokens>& acc, float* y) {
#pragma GCC unroll 4  // or GCC keeps acc in memory all along
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) vst1q_f32(y + t * kBlockRows + 4 * h, acc[t][h]);
}

template <int kTokens>
void q4_tile(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, float* y) {
    const Tile<kTokens> tile(rows, group, first);
    Floats<kTokens> acc = {};
    for (int64_t g = 0; g < rows.cols / group; ++g, bytes += 32) {
        Ints<kTokens> dot = {};
        for (int64_t c = g * group; c < (g + 1) * group; c += 16, bytes += 64) {
            int8x16_t x[kTokens];
            for (int t = 0; t < kTokens; ++t) x[t] = load_codes(tile.codes[t] + c);
            add_q4<0>(bytes, x, dot);
            add_q4<2>(bytes + 32, x, dot);
        }
        add_scaled<kTokens>({load_bf16(bytes), load_bf16(bytes + 8)}, tile, g, dot, acc);
        const float32x4_t bias[kHalves] = {load_bf16(bytes + 16), load_bf16(bytes + 24)};
        for (int t = 0; t < kTokens; ++t)
            for (int h = 0; h < kHalves; ++h)
                acc[t][h] = vfmaq_n_f32(acc[t][h], bias[h], tile.sums[t][g]);
    }
    store<kTokens>(acc, y);
}

template <int kTokens>
void q8_tile(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, float* y) {
    const Tile<kTokens> tile(rows, group, first);
    Floats<kTokens> acc = {};
    for (int64_t g = 0; g < rows.cols / group; ++g, bytes += 32) {
        Ints<kTokens> dot = {};
        for (int64_t c = g * group; c < (g + 1) * group; c += 16, bytes += 128) {
            int8x16_t x[kTokens];
            for (int t = 0; t < kTokens; ++t) x[t] = load_codes(tile.codes[t] + c);
            add_q8<0>(bytes, x, dot);
            add_q8<1>(bytes + 32, x, dot);
            add_q8<2>(bytes + 64, x, dot);
            add_q8<3>(bytes + 96, x, dot);
        }
        add_scaled<kTokens>({load_float(bytes), load_float(bytes + 16)}, tile, g, dot, acc);
    }
    store<kTokens>(acc, y);
}

// One unit of bf16: two columns, whose activations are lanes kLane and kLane + 1 of x.
template <int kLane, int kTokens>
[[gnu::always_inline]] inline void add_bf16(const uint8_t* bytes, const float32x4_t (&x)[kTokens],
                                            Floats<kTokens>& even, Floats<kTokens>& odd) {
    for (int h = 0; h < kHalves; ++h) {
        const uint32x4_t pair = vreinterpretq_u32_u8(vld1q_u8(bytes + 16 * h));
        const float32x4_t first = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
        const float32x4_t second = vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xFFFF0000)));
        for (int t = 0; t < kTokens; ++t) {
            even[t][h] = vfmaq_laneq_f32(even[t][h], first, x[t], kLane);
            odd[t][h] = vfmaq_laneq_f32(odd[t][h], second, x[t], kLane + 1);
        }
    }
}

// The last unit of an odd number of them, one token. Apart from the loop: accumulators that may or
// may not go on after it, GCC keeps in memory.
void bf16_tail(const uint8_t* bytes, const float* from, float* y) {
    const float32x4_t x[1] = {vcombine_f32(vld1_f32(from), vdup_n_f32(0))};
    Floats<1> even = {{vld1q_f32(y), vld1q_f32(y + 4)}}, odd = {};
    add_bf16<0>(bytes, x, even, odd);
    for (int h = 0; h < kHalves; ++h) even[0][h] = vaddq_f32(even[0][h], odd[0][h]);
    store<1>(even, y);
}

// Four accumulators per token and half hide the latency of FMA when there is only one token.
template <int kTokens>
void bf16_tile(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, float* y) {
    const float* from[kTokens];
    for (int t = 0; t < kTokens; ++t) from[t] = rows.x + rows.at(first + t) * rows.cols;
    Floats<kTokens> a = {}, b = {}, c = {}, d = {};
    float32x4_t x[kTokens];
    int64_t column = 0;
    for (; column + 4 <= rows.cols; column += 4, bytes += 64) {
        for (int t = 0; t < kTokens; ++t) x[t] = vld1q_f32(from[t] + column);
        add_bf16<0>(bytes, x, a, b);
        add_bf16<2>(bytes + 32, x, c, d);
    }
// Without these too.
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h)
            a[t][h] = vaddq_f32(vaddq_f32(a[t][h], b[t][h]), vaddq_f32(c[t][h], d[t][h]));
    store<kTokens>(a, y);
    for (int t = 0; t < kTokens && column < rows.cols; ++t)
        bf16_tail(bytes, from[t] + column, y + t * kBlockRows);
}

using TileKernel = void (*)(const uint8_t*, int64_t, const Rows&, int64_t, float*);

// kernels[n - 1] handles n tokens.
template <int kTile>
void run_tiles(const TileKernel (&kernels)[kTile], const uint8_t* bytes, int64_t group,
               const Rows& rows, int64_t first, int64_t count, float* y) {
    for (int64_t done = 0; done < count; done += kTile) {
        const int64_t tokens = count - done < kTile ? count - done : kTile;
        kernels[tokens - 1](bytes, group, rows, first + done, y + done * kBlockRows);
    }
}

// As many tokens as leave no accumulator without a register.
constexpr TileKernel kQ4[] = {q4_tile<1>, q4_tile<2>, q4_tile<3>, q4_tile<4>};
constexpr TileKernel kQ8[] = {q8_tile<1>, q8_tile<2>, q8_tile<3>, q8_tile<4>};
constexpr TileKernel kBf16[] = {bf16_tile<1>, bf16_tile<2>};

void dot_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    run_tiles(kQ4, bytes, group, rows, first, count, y);
}

void dot_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    run_tiles(kQ8, bytes, group, rows, first, count, y);
}

void dot_bf16(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
              float* y) {
    run_tiles(kBf16, bytes, group, rows, first, count, y);
}

float largest_magnitude(const float* x, int64_t n) {
    // Compared as integers, so that NaN counts as the largest of all.
    uint32x4_t largest = vdupq_n_u32(0);
    for (int64_t i = 0; i < n; i += 4)
        largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
    return std::bit_cast<float>(vmaxvq_u32(largest));
}

// Writes codes round(x * inverse) and returns their sum.
int32_t round_codes(const float* x, float inverse, int64_t n, int8_t* codes) {
    int32x4_t total = vdupq_n_s32(0);
    for (int64_t i = 0; i < n; i += 8) {
        const int32x4_t first = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse));
        const int32x4_t second = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inverse));
        total = vaddq_s32(total, vaddq_s32(first, second));
        const int16x8_t words = vcombine_s16(vmovn_s32(first), vmovn_s32(second));
        vst1_s8(codes + i, vqmovn_s16(words));
    }
    return vaddvq_s32(total);
}

void quantize(const float* x, int64_t group, int8_t* codes, float* scale, float* sum) {
    const float amax = largest_magnitude(x, group);
    const float inverse = 127.0f / amax;
    *scale = std::isinf(inverse) ? 0.0f : amax / 127.0f;
    if (std::isfinite(inverse) && inverse > 0) {
        *sum = *scale * static_cast<float>(round_codes(x, inverse, group, codes));
    } else {
        std::memset(codes, 0, static_cast<size_t>(group));
        *sum = *scale;
    }
}

void silu_mul(const float* gate, const float* up, float* out, int64_t n) {
    for (int64_t i = 0; i < n; i += 4)
        vst1q_f32(out + i, vmulq_f32(neon::silu(vld1q_f32(gate + i)), vld1q_f32(up + i)));
}

}  // namespace

void register_linear_neon(LinearKernels& table) {
    table.dot_bf16 = dot_bf16;
    table.dot_q8 = dot_q8;
    table.dot_q4 = dot_q4;
    table.quantize = quantize;
    table.silu_mul = silu_mul;
}

}  // namespace flashmoe
