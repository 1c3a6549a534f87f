// One lane per weight row: 8 of one block in 256 bits, or 16 of two adjacent blocks in 512 bits.
// One token takes two units of one block in 512 bits. Sums of codes are exact, and the float
// operations of a row are the same in both widths and for every tile of tokens: a row's result does
// not depend on how it is computed.
#include "cpu/linear/avx512.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "cpu/linear/tiles_avx512.h"
#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

using avx512::Call;
using avx512::One;
using avx512::pair;
using avx512::run_tiles;
using avx512::Tile;
using avx512::TileKernel;
using avx512::Two;

template <typename V, int kTokens, int kGroup>
void q4_tile(const uint8_t* bytes, const Call& call) {
    using Int = typename V::Int;
    const Tile<kTokens> tile(call.rows, kGroup, call.first);
    typename V::Float acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g) {
        Int dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = V::all(0);
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; c += 8, bytes += 32) {
            const Int units = V::load(bytes, call.stride_bytes);
            const Int low = units & V::all(0x0F0F0F0F), high = V::high_nibbles(units);
            for (int t = 0; t < kTokens; ++t) {
                const int8_t* x = tile.codes[t] + g * kGroup + c;
                dot[t] = V::dot(dot[t], low, avx512::broadcast_codes<V>(x));
                dot[t] = V::dot(dot[t], high, avx512::broadcast_codes<V>(x + 4));
            }
        }
        const auto scale = V::bf16(bytes, call.stride_bytes);
        const auto bias = V::bf16(bytes + 16, call.stride_bytes);
        bytes += 32;
        for (int t = 0; t < kTokens; ++t) {
            const auto step = scale * V::all(tile.scales[t][g]);
            acc[t] = V::multiply_add(step, V::floats(dot[t]), acc[t]);
            acc[t] = V::multiply_add(bias, V::all(tile.sums[t][g]), acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) V::store(call.y + t * kBlockRows, call.stride_y, acc[t]);
}

// The dot product takes unsigned weights: code + 128, and the sum starts at -128 * sum(x).
template <typename V, int kTokens, int kGroup>
void q8_tile(const uint8_t* bytes, const Call& call) {
    using Int = typename V::Int;
    const Tile<kTokens> tile(call.rows, kGroup, call.first);
    typename V::Float acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g) {
        Int dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = V::all(tile.offsets[t][g]);
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; c += 4, bytes += 32) {
            const Int units = V::load(bytes, call.stride_bytes);
            const Int weight = units ^ V::all(static_cast<int32_t>(0x80808080));
            for (int t = 0; t < kTokens; ++t)
                dot[t] = V::dot(dot[t], weight,
                                avx512::broadcast_codes<V>(tile.codes[t] + g * kGroup + c));
        }
        const auto scale = V::as_floats(V::load(bytes, call.stride_bytes));
        bytes += 32;
        for (int t = 0; t < kTokens; ++t) {
            const auto step = scale * V::all(tile.scales[t][g]);
            acc[t] = V::multiply_add(step, V::floats(dot[t]), acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) V::store(call.y + t * kBlockRows, call.stride_y, acc[t]);
}

// acc[0] and acc[1] take the even and odd column of one unit.
template <typename V, int kTokens>
void bf16_unit(typename V::Int units, const float* const (&x)[kTokens], int64_t column,
               typename V::Float (*acc)[kTokens]) {
    const auto even = V::as_floats(V::upper_half(units));
    const auto odd = V::as_floats(units & V::all(static_cast<int32_t>(0xFFFF0000)));
    for (int t = 0; t < kTokens; ++t) {
        acc[0][t] = V::multiply_add(even, V::all(x[t][column]), acc[0][t]);
        acc[1][t] = V::multiply_add(odd, V::all(x[t][column + 1]), acc[1][t]);
    }
}

template <typename V, int kTokens>
void bf16_tile(const uint8_t* bytes, const Call& call) {
    const float* x[kTokens];
    typename V::Float acc[4][kTokens];
    for (int t = 0; t < kTokens; ++t) {
        x[t] = call.rows.x + call.rows.at(call.first + t) * call.rows.cols;
        for (auto& part : acc) part[t] = V::all(0.0f);
    }
    int64_t c = 0;
    for (; c + 4 <= call.rows.cols; c += 4, bytes += 64) {
        bf16_unit<V, kTokens>(V::load(bytes, call.stride_bytes), x, c, acc);
        bf16_unit<V, kTokens>(V::load(bytes + 32, call.stride_bytes), x, c + 2, acc + 2);
    }
    if (c < call.rows.cols) bf16_unit<V, kTokens>(V::load(bytes, call.stride_bytes), x, c, acc);
    for (int t = 0; t < kTokens; ++t)
        V::store(call.y + t * kBlockRows, call.stride_y,
                 (acc[0][t] + acc[1][t]) + (acc[2][t] + acc[3][t]));
}

// One token: 64 bytes are two units that follow each other, the first in the low half. Decode waits
// for memory, and half as many instructions keep twice as many of its loads in flight. A prefetch
// by software made it slower (docs/experiments/gemv-rate.md).

// Per lane the element of x[0, 4) at `low` in the low half, at `high` in the upper one.
__m512i halves(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
}

// 16 codes in each quarter.
__m512i load_codes(const int8_t* codes) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
}

__m256i add_halves(__m512i x) {
    return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}

template <int kGroup>
__m256i q4_group(const uint8_t* bytes, const int8_t* x) {
    const __m512i first = halves(0, 2), second = halves(1, 3);
    __m512i low = _mm512_setzero_si512(), high = low;
#pragma GCC unroll 8
    for (int c = 0; c < kGroup; c += 16, bytes += 64) {
        const __m512i units = _mm512_loadu_si512(bytes), codes = load_codes(x + c);
        low = Two::dot(low, units & Two::all(0x0F0F0F0F), _mm512_permutexvar_epi32(first, codes));
        high = Two::dot(high, Two::high_nibbles(units), _mm512_permutexvar_epi32(second, codes));
    }
    return add_halves(_mm512_add_epi32(low, high));
}

template <int kGroup>
void q4_one(const uint8_t* bytes, const Call& call) {
    const Tile<1> tile(call.rows, kGroup, call.first);
    __m256 acc = One::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g, bytes += 4 * kGroup + 32) {
        const __m256i dot = q4_group<kGroup>(bytes, tile.codes[0] + g * kGroup);
        const __m256 scale = One::bf16(bytes + 4 * kGroup, 0);
        const __m256 bias = One::bf16(bytes + 4 * kGroup + 16, 0);
        const __m256 step = scale * One::all(tile.scales[0][g]);
        acc = One::multiply_add(step, One::floats(dot), acc);
        acc = One::multiply_add(bias, One::all(tile.sums[0][g]), acc);
    }
    One::store(call.y, 0, acc);
}

template <int kGroup>
__m256i q8_group(const uint8_t* bytes, const int8_t* x) {
    const __m512i first = halves(0, 1), second = halves(2, 3);
    const __m512i flip = Two::all(static_cast<int32_t>(0x80808080));
    __m512i even = _mm512_setzero_si512(), odd = even;
#pragma GCC unroll 8
    for (int c = 0; c < kGroup; c += 16, bytes += 128) {
        const __m512i codes = load_codes(x + c);
        even = Two::dot(even, _mm512_loadu_si512(bytes) ^ flip,
                        _mm512_permutexvar_epi32(first, codes));
        odd = Two::dot(odd, _mm512_loadu_si512(bytes + 64) ^ flip,
                       _mm512_permutexvar_epi32(second, codes));
    }
    return add_halves(_mm512_add_epi32(even, odd));
}

template <int kGroup>
void q8_one(const uint8_t* bytes, const Call& call) {
    const Tile<1> tile(call.rows, kGroup, call.first);
    __m256 acc = One::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g, bytes += 8 * kGroup + 32) {
        const __m256i sum = q8_group<kGroup>(bytes, tile.codes[0] + g * kGroup);
        const __m256i dot = _mm256_add_epi32(sum, One::all(tile.offsets[0][g]));
        const __m256 scale = One::as_floats(One::load(bytes + 8 * kGroup, 0));
        acc = One::multiply_add(scale * One::all(tile.scales[0][g]), One::floats(dot), acc);
    }
    One::store(call.y, 0, acc);
}

// The halves of `even` and `odd` are the four accumulators of bf16_tile.
void bf16_one(const uint8_t* bytes, const Call& call) {
    const float* x = call.rows.x + call.rows.at(call.first) * call.rows.cols;
    const __m512i first = halves(0, 2), second = halves(1, 3);
    __m512 even = Two::all(0.0f), odd = even;
    int64_t c = 0;
    const auto add = [&](__m512i units, __m512 four) {
        even = Two::multiply_add(Two::as_floats(Two::upper_half(units)),
                                 _mm512_permutexvar_ps(first, four), even);
        odd = Two::multiply_add(Two::as_floats(units & Two::all(static_cast<int32_t>(0xFFFF0000))),
                                _mm512_permutexvar_ps(second, four), odd);
    };
#pragma GCC unroll 4
    for (; c + 4 <= call.rows.cols; c += 4, bytes += 64)
        add(_mm512_loadu_si512(bytes), _mm512_broadcast_f32x4(_mm_loadu_ps(x + c)));
    __m256 acc[2][1] = {{_mm512_castps512_ps256(even)}, {_mm512_castps512_ps256(odd)}};
    const float* const columns[1] = {x};
    if (c < call.rows.cols) bf16_unit<One, 1>(One::load(bytes, 0), columns, c, acc);
    const __m256 upper = _mm512_extractf32x8_ps(even, 1) + _mm512_extractf32x8_ps(odd, 1);
    One::store(call.y, 0, (acc[0][0] + acc[1][0]) + upper);
}

template <int kGroup>
constexpr TileKernel kQ4[] = {q4_one<kGroup>, q4_tile<One, 2, kGroup>, q4_tile<One, 3, kGroup>,
                              q4_tile<One, 4, kGroup>};
template <int kGroup>
constexpr TileKernel kQ8[] = {q8_one<kGroup>, q8_tile<One, 2, kGroup>, q8_tile<One, 3, kGroup>,
                              q8_tile<One, 4, kGroup>};
constexpr TileKernel kBf16[] = {bf16_one, bf16_tile<One, 2>, bf16_tile<One, 3>, bf16_tile<One, 4>};
template <int kGroup>
constexpr TileKernel kPairQ4[] = {q4_tile<Two, 1, kGroup>, q4_tile<Two, 2, kGroup>,
                                  q4_tile<Two, 3, kGroup>, q4_tile<Two, 4, kGroup>,
                                  q4_tile<Two, 5, kGroup>, q4_tile<Two, 6, kGroup>,
                                  q4_tile<Two, 7, kGroup>, q4_tile<Two, 8, kGroup>};
template <int kGroup>
constexpr TileKernel kPairQ8[] = {q8_tile<Two, 1, kGroup>, q8_tile<Two, 2, kGroup>,
                                  q8_tile<Two, 3, kGroup>, q8_tile<Two, 4, kGroup>,
                                  q8_tile<Two, 5, kGroup>, q8_tile<Two, 6, kGroup>,
                                  q8_tile<Two, 7, kGroup>, q8_tile<Two, 8, kGroup>};
constexpr TileKernel kPairBf16[] = {bf16_tile<Two, 1>, bf16_tile<Two, 2>, bf16_tile<Two, 3>,
                                    bf16_tile<Two, 4>, bf16_tile<Two, 5>, bf16_tile<Two, 6>};

void dot_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const auto& tiles = group == 32 ? kQ4<32> : group == 64 ? kQ4<64> : kQ4<128>;
    run_tiles(tiles, bytes, {rows, first, 0, y, 0}, count);
}

void dot_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const auto& tiles = group == 32 ? kQ8<32> : group == 64 ? kQ8<64> : kQ8<128>;
    run_tiles(tiles, bytes, {rows, first, 0, y, 0}, count);
}

void dot_bf16(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
              float* y) {
    run_tiles(kBf16, bytes, {rows, first, 0, y, 0}, count);
}

__m512i largest_bits(const float* x, int64_t n) {
    // Compared as integers, so that NaN counts as the largest of all.
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += avx512::kLanes) {
        const __m512i bits = _mm512_loadu_si512(x + i) & _mm512_set1_epi32(0x7FFFFFFF);
        largest = _mm512_max_epi32(largest, bits);
    }
    return largest;
}

// Writes codes round(x * inverse) and returns their sum.
int32_t round_codes(const float* x, float inverse, int64_t n, int8_t* codes) {
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += avx512::kLanes) {
        const __m512i wide =
            _mm512_cvtps_epi32(_mm512_mul_ps(avx512::load(x + i), _mm512_set1_ps(inverse)));
        total = _mm512_add_epi32(total, wide);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(wide));
    }
    return _mm512_reduce_add_epi32(total);
}

void quantize(const float* x, int64_t group, int8_t* codes, float* scale, float* sum) {
    const int32_t bits = _mm512_reduce_max_epi32(largest_bits(x, group));
    float amax;
    std::memcpy(&amax, &bits, sizeof(amax));
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
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 g = avx512::load(gate + i, mask), u = avx512::load(up + i, mask);
        avx512::store(out + i, _mm512_mul_ps(avx512::silu(g), u), mask);
    });
}

}  // namespace

namespace avx512 {

void pair_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
             float* y) {
    const auto& tiles = group == 32 ? kPairQ4<32> : group == 64 ? kPairQ4<64> : kPairQ4<128>;
    pair<dot_q4, Format::q4>(tiles, bytes, group, rows, first, count, y);
}

void pair_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
             float* y) {
    const auto& tiles = group == 32 ? kPairQ8<32> : group == 64 ? kPairQ8<64> : kPairQ8<128>;
    pair<dot_q8, Format::q8>(tiles, bytes, group, rows, first, count, y);
}

void pair_bf16(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
               float* y) {
    pair<dot_bf16, Format::bf16>(kPairBf16, bytes, group, rows, first, count, y);
}

}  // namespace avx512

void register_linear_avx512(LinearKernels& table) {
    table.dot_bf16 = dot_bf16;
    table.dot_q8 = dot_q8;
    table.dot_q4 = dot_q4;
    table.pair_bf16 = avx512::pair_bf16;
    table.pair_q8 = avx512::pair_q8;
    table.pair_q4 = avx512::pair_q4;
    table.quantize = quantize;
    table.silu_mul = silu_mul;
}

}  // namespace flashmoe
