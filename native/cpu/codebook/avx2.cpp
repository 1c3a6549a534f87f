// As cpu/mxfp4/avx2.cpp: one lane per row, tokens in tiles that share each load and look-up. The
// sum starts at -kShift times that of the activations, which undoes the unsigned levels.
#include <immintrin.h>

#include <cstring>

#include "cpu/codebook/codebook.h"
#include "cpu/linear/linear.h"

namespace flashmoe {
namespace {

__m256i load(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

__m256i broadcast_codes(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    return _mm256_set1_epi32(four);
}

__m256 load_scales(const uint8_t* bytes) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    const __m256i base = _mm256_set1_epi32(static_cast<int32_t>(kScaleBase));
    const __m256i bits = _mm256_add_epi32(_mm256_cvtepu8_epi32(eight), base);
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 20));
}

template <int kBits>
__m256i levels() {
    alignas(16) uint8_t table[16] = {};
    for (int i = 0; i < 1 << kBits; ++i)
        table[i] = static_cast<uint8_t>(kLevels<kBits>[i] + kShift<kBits>);
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

// The weights of columns 4 kPart .. 4 kPart + 3 of a chunk.
template <int kBits, int kPart>
__m256i weights(__m256i table, __m256i low, __m256i high) {
    __m256i code = _mm256_and_si256(_mm256_srli_epi16(low, kPart % 4 * 2), _mm256_set1_epi8(3));
    if constexpr (kBits == 3) {
        const __m256i moved = kPart < 2 ? _mm256_slli_epi16(high, kPart < 2 ? 2 - kPart : 0)
                                        : _mm256_srli_epi16(high, kPart < 2 ? 0 : kPart - 2);
        code = _mm256_or_si256(code, _mm256_and_si256(moved, _mm256_set1_epi8(4)));
    }
    return _mm256_shuffle_epi8(table, code);
}

// Two products of 2 * 70 * 127 do not fit 16 bits: each is widened by itself.
template <int kBits, int kPart, int kTokens>
void add_part(__m256i table, __m256i low, __m256i high, const int8_t* const (&x)[kTokens],
              int64_t column, __m256i (&dot)[kTokens]) {
    const __m256i w = weights<kBits, kPart>(table, low, high), ones = _mm256_set1_epi16(1);
    for (int t = 0; t < kTokens; ++t) {
        const __m256i pairs = _mm256_maddubs_epi16(w, broadcast_codes(x[t] + column + 4 * kPart));
        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
    }
}

template <int kBits, int kTokens>
void add_chunk(__m256i table, const uint8_t* bytes, const int8_t* const (&x)[kTokens],
               int64_t column, __m256i (&dot)[kTokens]) {
    const __m256i a = load(bytes), b = load(bytes + 32), h = kBits == 3 ? load(bytes + 64) : a;
    add_part<kBits, 0>(table, a, h, x, column, dot);
    add_part<kBits, 1>(table, a, h, x, column, dot);
    add_part<kBits, 2>(table, a, h, x, column, dot);
    add_part<kBits, 3>(table, a, h, x, column, dot);
    add_part<kBits, 4>(table, b, h, x, column, dot);
    add_part<kBits, 5>(table, b, h, x, column, dot);
    add_part<kBits, 6>(table, b, h, x, column, dot);
    add_part<kBits, 7>(table, b, h, x, column, dot);
}

template <int kBits, int kTokens>
void tile(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, float* y) {
    const int64_t groups = rows.cols / group;
    const __m256i table = levels<kBits>();
    const int8_t* codes[kTokens];
    __m256 acc[kTokens];
    for (int t = 0; t < kTokens; ++t) {
        codes[t] = rows.codes + rows.at(first + t) * rows.cols;
        acc[t] = _mm256_setzero_ps();
    }
    for (int64_t g = 0; g < groups; ++g, bytes += kBlockRows) {
        __m256i dot[kTokens];
        for (int t = 0; t < kTokens; ++t) {
            const int32_t offset = rows.offsets[rows.at(first + t) * groups + g];
            dot[t] = _mm256_set1_epi32(offset / 128 * kShift<kBits>);
        }
        for (int64_t c = 0; c < group; c += 32, bytes += kChunkBytes<kBits>)
            add_chunk<kBits>(table, bytes, codes, g * group + c, dot);
        const __m256 scale = load_scales(bytes);
        for (int t = 0; t < kTokens; ++t) {
            const __m256 x_scale = _mm256_set1_ps(rows.scales[rows.at(first + t) * groups + g]);
            const __m256 value = _mm256_mul_ps(x_scale, _mm256_cvtepi32_ps(dot[t]));
            acc[t] = _mm256_fmadd_ps(scale, value, acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) _mm256_storeu_ps(y + t * kBlockRows, acc[t]);
}

template <int kBits>
void dot(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
         float* y) {
    constexpr void (*kTiles[])(const uint8_t*, int64_t, const Rows&, int64_t, float*) = {
        tile<kBits, 1>, tile<kBits, 2>, tile<kBits, 3>, tile<kBits, 4>};
    for (int64_t done = 0; done < count; done += 4) {
        const int64_t tokens = count - done < 4 ? count - done : 4;
        kTiles[tokens - 1](bytes, group, rows, first + done, y + done * kBlockRows);
    }
}

}  // namespace

void register_codebook_avx2(LinearKernels& table) {
    table.dot_q2 = dot<2>;
    table.dot_q3 = dot<3>;
}

}  // namespace flashmoe
