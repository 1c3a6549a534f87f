// One lane per weight row: 8 of one block in 256 bits, or 16 of two adjacent blocks in 512 bits.
// Sums of codes are exact, and the float operations of a row are the same in both widths and for
// every tile of tokens: a row's result does not depend on how it is computed.
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
            if (kTokens == 1 && c % 16 == 0) avx512::prefetch(bytes);
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
            if (kTokens == 1 && c % 8 == 0) avx512::prefetch(bytes);
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

// Four accumulators per token hide the latency of FMA when there is only one token.
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
        if (kTokens == 1) avx512::prefetch(bytes);
        bf16_unit<V, kTokens>(V::load(bytes, call.stride_bytes), x, c, acc);
        bf16_unit<V, kTokens>(V::load(bytes + 32, call.stride_bytes), x, c + 2, acc + 2);
    }
    if (c < call.rows.cols) bf16_unit<V, kTokens>(V::load(bytes, call.stride_bytes), x, c, acc);
    for (int t = 0; t < kTokens; ++t)
        V::store(call.y + t * kBlockRows, call.stride_y,
                 (acc[0][t] + acc[1][t]) + (acc[2][t] + acc[3][t]));
}

template <int kGroup>
constexpr TileKernel kQ4[] = {q4_tile<One, 1, kGroup>, q4_tile<One, 2, kGroup>,
                              q4_tile<One, 3, kGroup>, q4_tile<One, 4, kGroup>};
template <int kGroup>
constexpr TileKernel kQ8[] = {q8_tile<One, 1, kGroup>, q8_tile<One, 2, kGroup>,
                              q8_tile<One, 3, kGroup>, q8_tile<One, 4, kGroup>};
constexpr TileKernel kBf16[] = {bf16_tile<One, 1>, bf16_tile<One, 2>, bf16_tile<One, 3>,
                                bf16_tile<One, 4>};
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
