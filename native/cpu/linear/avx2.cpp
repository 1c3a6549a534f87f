// One lane per row of the 8-row block. Tokens go through in tiles that share each weight load;
// every token of a tile has accumulators of its own, so its arithmetic does not depend on its
// neighbours.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "cpu/linear/linear.h"

namespace flashmoe {
namespace {

// Bytes ahead of the current load, for bf16 only: q4 and q8 are as fast or faster without, and
// hints for the nearest cache are slower than those for L2 (docs/experiments/gemv-rate.md).
constexpr int64_t kPrefetchBytes = 6144;

__m256i load(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

// Eight bf16 values as float.
__m256 load_bf16(const uint8_t* bytes) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// The same 4 activation codes in every lane.
__m256i broadcast_codes(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    return _mm256_set1_epi32(four);
}

void prefetch(const uint8_t* bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetchBytes), _MM_HINT_T1);
}

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

// At most 8 products of 2 * 15 * 127 fit the 16-bit lanes: 8 units are summed before widening.
template <int kTokens, int kUnits>
const uint8_t* q4_units(const uint8_t* bytes, int64_t column, const Tile<kTokens>& tile,
                        __m256i (&dot)[kTokens]) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i low[kTokens], high[kTokens];
    for (int t = 0; t < kTokens; ++t) low[t] = high[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u, bytes += 32, column += 8) {
        const __m256i pair = load(bytes);
        const __m256i first = _mm256_and_si256(pair, nibble);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble);
        for (int t = 0; t < kTokens; ++t) {
            const int8_t* x = tile.codes[t] + column;
            low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(first, broadcast_codes(x)));
            high[t] =
                _mm256_add_epi16(high[t], _mm256_maddubs_epi16(second, broadcast_codes(x + 4)));
        }
    }
    for (int t = 0; t < kTokens; ++t) {
        const __m256i sum =
            _mm256_add_epi32(_mm256_madd_epi16(low[t], ones), _mm256_madd_epi16(high[t], ones));
        dot[t] = _mm256_add_epi32(dot[t], sum);
    }
    return bytes;
}

template <int kTokens, int kGroup>
void q4_tile(const uint8_t* bytes, const Rows& rows, int64_t first, float* y) {
    constexpr int kUnits = kGroup / 8 < 8 ? kGroup / 8 : 8;
    const Tile<kTokens> tile(rows, kGroup, first);
    __m256 acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_setzero_ps();
    for (int64_t g = 0; g < rows.cols / kGroup; ++g) {
        __m256i dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = _mm256_setzero_si256();
        for (int64_t c = 0; c < kGroup; c += 8 * kUnits)
            bytes = q4_units<kTokens, kUnits>(bytes, g * kGroup + c, tile, dot);
        const __m256 scale = load_bf16(bytes), bias = load_bf16(bytes + 16);
        bytes += 32;
        for (int t = 0; t < kTokens; ++t) {
            const __m256 step = _mm256_mul_ps(scale, _mm256_set1_ps(tile.scales[t][g]));
            acc[t] = _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(dot[t]), acc[t]);
            acc[t] = _mm256_fmadd_ps(bias, _mm256_set1_ps(tile.sums[t][g]), acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) _mm256_storeu_ps(y + t * kBlockRows, acc[t]);
}

template <int kTokens, int kGroup>
void q8_tile(const uint8_t* bytes, const Rows& rows, int64_t first, float* y) {
    const Tile<kTokens> tile(rows, kGroup, first);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_setzero_ps();
    for (int64_t g = 0; g < rows.cols / kGroup; ++g) {
        __m256i dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; c += 4, bytes += 32) {
            // maddubs takes an unsigned side: |w|, with the sign of w moved to the activation.
            const __m256i weight = load(bytes), magnitude = _mm256_abs_epi8(weight);
            for (int t = 0; t < kTokens; ++t) {
                const __m256i x = broadcast_codes(tile.codes[t] + g * kGroup + c);
                const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, weight));
                dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
            }
        }
        const __m256 scale = _mm256_loadu_ps(reinterpret_cast<const float*>(bytes));
        bytes += 32;
        for (int t = 0; t < kTokens; ++t) {
            const __m256 step = _mm256_mul_ps(scale, _mm256_set1_ps(tile.scales[t][g]));
            acc[t] = _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(dot[t]), acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) _mm256_storeu_ps(y + t * kBlockRows, acc[t]);
}

// acc[0] and acc[1] take the even and odd column of one unit.
template <int kTokens>
void bf16_unit(const uint8_t* bytes, const float* const (&x)[kTokens], int64_t column,
               __m256 (*acc)[kTokens]) {
    const __m256i pair = load(bytes);
    const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
    const __m256 odd = _mm256_castsi256_ps(
        _mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000))));
    for (int t = 0; t < kTokens; ++t) {
        acc[0][t] = _mm256_fmadd_ps(even, _mm256_set1_ps(x[t][column]), acc[0][t]);
        acc[1][t] = _mm256_fmadd_ps(odd, _mm256_set1_ps(x[t][column + 1]), acc[1][t]);
    }
}

// Four accumulators per token hide the latency of FMA when there is only one token.
template <int kTokens>
void bf16_tile(const uint8_t* bytes, const Rows& rows, int64_t first, float* y) {
    const float* x[kTokens];
    __m256 acc[4][kTokens];
    for (int t = 0; t < kTokens; ++t) {
        x[t] = rows.x + rows.at(first + t) * rows.cols;
        for (auto& part : acc) part[t] = _mm256_setzero_ps();
    }
    int64_t c = 0;
    for (; c + 4 <= rows.cols; c += 4, bytes += 64) {
        if (kTokens == 1) prefetch(bytes);
        bf16_unit<kTokens>(bytes, x, c, acc);
        bf16_unit<kTokens>(bytes + 32, x, c + 2, acc + 2);
    }
    if (c < rows.cols) bf16_unit<kTokens>(bytes, x, c, acc);
    for (int t = 0; t < kTokens; ++t) {
        const __m256 sum =
            _mm256_add_ps(_mm256_add_ps(acc[0][t], acc[1][t]), _mm256_add_ps(acc[2][t], acc[3][t]));
        _mm256_storeu_ps(y + t * kBlockRows, sum);
    }
}

using TileKernel = void (*)(const uint8_t*, const Rows&, int64_t, float*);

// kernels[n - 1] handles n tokens.
template <int kTile>
void run_tiles(const TileKernel (&kernels)[kTile], const uint8_t* bytes, const Rows& rows,
               int64_t first, int64_t count, float* y) {
    for (int64_t done = 0; done < count; done += kTile) {
        const int64_t tokens = count - done < kTile ? count - done : kTile;
        kernels[tokens - 1](bytes, rows, first + done, y + done * kBlockRows);
    }
}

template <int kGroup>
constexpr TileKernel kQ4[] = {q4_tile<1, kGroup>, q4_tile<2, kGroup>, q4_tile<3, kGroup>,
                              q4_tile<4, kGroup>};
template <int kGroup>
constexpr TileKernel kQ8[] = {q8_tile<1, kGroup>, q8_tile<2, kGroup>, q8_tile<3, kGroup>,
                              q8_tile<4, kGroup>};
constexpr TileKernel kBf16[] = {bf16_tile<1>, bf16_tile<2>, bf16_tile<3>};

void dot_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const auto& tiles = group == 32 ? kQ4<32> : group == 64 ? kQ4<64> : kQ4<128>;
    run_tiles(tiles, bytes, rows, first, count, y);
}

void dot_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const auto& tiles = group == 32 ? kQ8<32> : group == 64 ? kQ8<64> : kQ8<128>;
    run_tiles(tiles, bytes, rows, first, count, y);
}

void dot_bf16(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
              float* y) {
    run_tiles(kBf16, bytes, rows, first, count, y);
}

float largest_magnitude(const float* x, int64_t n) {
    // Compared as integers, so that NaN counts as the largest of all.
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += 8) {
        const __m256i bits = load(reinterpret_cast<const uint8_t*>(x + i));
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)));
    }
    __m128i top =
        _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, _MM_SHUFFLE(1, 0, 3, 2)));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtss_f32(_mm_castsi128_ps(top));
}

int32_t horizontal_sum(__m256i lanes) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(1, 0, 3, 2)));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(sum);
}

// Writes codes round(x * inverse) and returns their sum.
int32_t round_codes(const float* x, float inverse, int64_t n, int8_t* codes) {
    __m256i total = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse));
        const __m256i wide = _mm256_cvtps_epi32(scaled);
        total = _mm256_add_epi32(total, wide);
        const __m128i words =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + i), _mm_packs_epi16(words, words));
    }
    return horizontal_sum(total);
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

// e^x to about 1 ulp for x in [-87, 88]; x outside is clamped to it.
__m256 exp8(__m256 x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(88.0f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts: n * 0.693359375 is exact.
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    // Taylor series to r^7 / 7!: below 6e-9 relative for |r| <= ln(2) / 2.
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(term));
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
}

void silu_mul(const float* gate, const float* up, float* out, int64_t n) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 g = _mm256_loadu_ps(gate + i);
        const __m256 decay = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, decay));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
    }
}

}  // namespace

void register_linear_avx2(LinearKernels& table) {
    table.dot_bf16 = dot_bf16;
    table.dot_q8 = dot_q8;
    table.dot_q4 = dot_q4;
    table.quantize = quantize;
    table.silu_mul = silu_mul;
}

}  // namespace flashmoe
