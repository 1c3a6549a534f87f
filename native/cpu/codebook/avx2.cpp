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

// Unsigned levels of the codes below 16, and of those above.
struct Levels {
    __m256i low, high;
};

template <int kBits>
Levels levels() {
    alignas(16) uint8_t table[32] = {};
    for (int i = 0; i < 1 << kBits; ++i)
        table[i] = static_cast<uint8_t>(kLevels<kBits>[i] + kShift<kBits>);
    const auto* halves = reinterpret_cast<const __m128i*>(table);
    return {_mm256_broadcastsi128_si256(_mm_load_si128(halves)),
            _mm256_broadcastsi128_si256(_mm_load_si128(halves + 1))};
}

// The weights of columns 4 kPart .. 4 kPart + 3 of a chunk.
template <int kBits, int kPart>
__m256i weights(const Levels& table, const uint8_t* bytes) {
    constexpr int kLow = kCodebookLow<kBits>, kFields = 8 / kLow;
    const __m256i low = load(bytes + kPart / kFields * 32);
    const __m256i code = _mm256_and_si256(_mm256_srli_epi16(low, kPart % kFields * kLow),
                                          _mm256_set1_epi8((1 << kLow) - 1));
    if constexpr (kBits == 3) {
        const __m256i high = load(bytes + 64);
        const __m256i moved = kPart < 2 ? _mm256_slli_epi16(high, kPart < 2 ? 2 - kPart : 0)
                                        : _mm256_srli_epi16(high, kPart < 2 ? 0 : kPart - 2);
        const __m256i bit = _mm256_and_si256(moved, _mm256_set1_epi8(4));
        return _mm256_shuffle_epi8(table.low, _mm256_or_si256(code, bit));
    } else if constexpr (kBits == 5) {
        // A look-up with bit 7 set gives 0: each table gives its own half.
        const __m256i top = _mm256_set1_epi8(-128);
        const __m256i moved = _mm256_slli_epi16(load(bytes + 128), 7 - kPart);
        const __m256i below = _mm256_or_si256(code, _mm256_and_si256(moved, top));
        return _mm256_or_si256(_mm256_shuffle_epi8(table.low, below),
                               _mm256_shuffle_epi8(table.high, _mm256_xor_si256(below, top)));
    } else {
        return _mm256_shuffle_epi8(table.low, code);
    }
}

// Two sums of two products of up to 124 * 127 do not fit 16 bits: each is widened by itself.
template <int kBits, int kPart, int kTokens>
void add_part(const Levels& table, const uint8_t* bytes, const int8_t* const (&x)[kTokens],
              int64_t column, __m256i (&dot)[kTokens]) {
    const __m256i w = weights<kBits, kPart>(table, bytes), ones = _mm256_set1_epi16(1);
    for (int t = 0; t < kTokens; ++t) {
        const __m256i pairs = _mm256_maddubs_epi16(w, broadcast_codes(x[t] + column + 4 * kPart));
        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
    }
}

template <int kBits, int kTokens>
void add_chunk(const Levels& table, const uint8_t* bytes, const int8_t* const (&x)[kTokens],
               int64_t column, __m256i (&dot)[kTokens]) {
    add_part<kBits, 0>(table, bytes, x, column, dot);
    add_part<kBits, 1>(table, bytes, x, column, dot);
    add_part<kBits, 2>(table, bytes, x, column, dot);
    add_part<kBits, 3>(table, bytes, x, column, dot);
    add_part<kBits, 4>(table, bytes, x, column, dot);
    add_part<kBits, 5>(table, bytes, x, column, dot);
    add_part<kBits, 6>(table, bytes, x, column, dot);
    add_part<kBits, 7>(table, bytes, x, column, dot);
}

template <int kBits, int kTokens>
void tile(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, float* y) {
    const int64_t groups = rows.cols / group;
    const Levels table = levels<kBits>();
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
    table.dot_q4n = dot<4>;
    table.dot_q5 = dot<5>;
}

}  // namespace flashmoe
