// As cpu/linear/avx2.cpp does q4: one lane per row of the block, tokens in tiles that share each
// load. Codes become twice their value plus 12 by table look-up: unsigned, so that maddubs takes
// them as they are; 6 times the sum of the activations undoes the 12.
#include <immintrin.h>

#include <cstring>

#include "cpu/linear/linear.h"
#include "cpu/mxfp4/mxfp4.h"

namespace flashmoe {
namespace {

constexpr int64_t kGroup = 32;
constexpr int64_t kPrefetchBytes = 6144;  // as in cpu/linear/avx2.cpp

__m256i load(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

__m256i broadcast_codes(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    return _mm256_set1_epi32(four);
}

// The eight scale bytes of a group as powers of two; byte 0 is 2^-127, a denormal.
__m256 load_scales(const uint8_t* bytes) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(eight), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(0x00400000)));
}

// dot[t] = sum of (2 w + 12) x over the group. Four products of 2 * 24 * 127 fit 16 bits.
template <int kTokens>
void group_dot(const uint8_t* bytes, const int8_t* const (&codes)[kTokens], int64_t column,
               __m256i (&dot)[kTokens]) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    __m256i low[kTokens], high[kTokens];
    for (int t = 0; t < kTokens; ++t) low[t] = high[t] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u, bytes += 32, column += 8) {
        if (kTokens == 1 && u % 2 == 0)
            _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetchBytes), _MM_HINT_T0);
        const __m256i pair = load(bytes);
        const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(pair, nibble));
        const __m256i second =
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble));
        for (int t = 0; t < kTokens; ++t) {
            const int8_t* x = codes[t] + column;
            low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(first, broadcast_codes(x)));
            high[t] =
                _mm256_add_epi16(high[t], _mm256_maddubs_epi16(second, broadcast_codes(x + 4)));
        }
    }
    for (int t = 0; t < kTokens; ++t)
        dot[t] =
            _mm256_add_epi32(_mm256_madd_epi16(low[t], ones), _mm256_madd_epi16(high[t], ones));
}

template <int kTokens>
void tile(const uint8_t* bytes, const Rows& rows, int64_t first, float* y) {
    const int64_t groups = rows.cols / kGroup;
    const int8_t* codes[kTokens];
    const float *scales[kTokens], *sums[kTokens];
    __m256 acc[kTokens];
    for (int t = 0; t < kTokens; ++t) {
        const int64_t row = rows.at(first + t);
        codes[t] = rows.codes + row * rows.cols;
        scales[t] = rows.scales + row * groups, sums[t] = rows.sums + row * groups;
        acc[t] = _mm256_setzero_ps();
    }
    for (int64_t g = 0; g < groups; ++g, bytes += 4 * kGroup + kBlockRows) {
        __m256i dot[kTokens];
        group_dot<kTokens>(bytes, codes, g * kGroup, dot);
        const __m256 scale = load_scales(bytes + 4 * kGroup);
        for (int t = 0; t < kTokens; ++t) {
            const __m256 half = _mm256_set1_ps(0.5f * scales[t][g]);
            const __m256 offset = _mm256_set1_ps(-6.0f * sums[t][g]);
            const __m256 value = _mm256_fmadd_ps(half, _mm256_cvtepi32_ps(dot[t]), offset);
            acc[t] = _mm256_fmadd_ps(scale, value, acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) _mm256_storeu_ps(y + t * kBlockRows, acc[t]);
}

void dot_mxfp4(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
               float* y) {
    constexpr void (*kTiles[])(const uint8_t*, const Rows&, int64_t, float*) = {tile<1>, tile<2>,
                                                                                tile<3>, tile<4>};
    for (int64_t done = 0; done < count; done += 4) {
        const int64_t tokens = count - done < 4 ? count - done : 4;
        kTiles[tokens - 1](bytes, rows, first + done, y + done * kBlockRows);
    }
}

}  // namespace

void register_mxfp4_avx2(LinearKernels& table) { table.dot_mxfp4 = dot_mxfp4; }

}  // namespace flashmoe
