// The same IEEE operations as the scalar kernels, 8 columns at a time: the bytes are equal.
#include <immintrin.h>

#include <cstring>

#include "cpu/codec/codec.h"

namespace flashmoe {
namespace {

__m128i load_half(const uint8_t* bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

__m256 bf16_floats(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

__m256 f16_floats(__m128i halves) { return _mm256_cvtph_ps(halves); }

template <__m256 (*convert)(__m128i)>
void widen(const uint8_t* bytes, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, convert(load_half(bytes + 2 * i)));
    if (i == n) return;
    uint8_t halves[16] = {};
    float floats[8];
    std::memcpy(halves, bytes + 2 * i, static_cast<size_t>(2 * (n - i)));
    _mm256_storeu_ps(floats, convert(load_half(halves)));
    std::memcpy(to + i, floats, static_cast<size_t>(4 * (n - i)));
}

// Folds 8 lanes with a two-operand instruction.
template <typename Fold>
float fold_lanes(__m256 lanes, Fold fold) {
    __m128 half = fold(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    half = fold(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(fold(half, _mm_shuffle_ps(half, half, 1)));
}

float lowest(__m256 lanes) {
    return fold_lanes(lanes, [](__m128 a, __m128 b) { return _mm_min_ps(a, b); });
}

float highest(__m256 lanes) {
    return fold_lanes(lanes, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}

uint32_t largest(const float* w, int64_t n) {
    __m256i bits = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i doubled = _mm256_slli_epi32(_mm256_castps_si256(_mm256_loadu_ps(w + i)), 1);
        bits = _mm256_max_epu32(bits, doubled);
    }
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), bits);
    uint32_t all = 0;
    for (const uint32_t lane : lanes) all = all < lane ? lane : all;
    for (; i < n; ++i) {
        const uint32_t doubled = std::bit_cast<uint32_t>(w[i]) << 1;
        all = all < doubled ? doubled : all;
    }
    return all >> 1;
}

// clip(round-half-even(x / divisor)) as 8 int32.
__m256i divide_codes(__m256 x, __m256 divisor, float low, float high) {
    const __m256 code =
        _mm256_round_ps(_mm256_div_ps(x, divisor), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 clipped =
        _mm256_min_ps(_mm256_max_ps(code, _mm256_set1_ps(low)), _mm256_set1_ps(high));
    return _mm256_cvtps_epi32(clipped);
}

// The low bytes of 8 int32, in order.
uint64_t pack_bytes(__m256i wide) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packs_epi16(words, words)));
}

void encode_q8(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    const float scale = std::bit_cast<float>(largest(w, group)) / 127.0f;
    const __m256 divisor = _mm256_set1_ps(scale == 0 ? 1.0f : scale);
    for (int64_t c = 0; c < group; c += 8, bytes += 64) {
        const uint64_t codes =
            pack_bytes(divide_codes(_mm256_loadu_ps(w + c), divisor, -127.0f, 127.0f));
        const auto first = static_cast<uint32_t>(codes),
                   second = static_cast<uint32_t>(codes >> 32);
        std::memcpy(bytes, &first, 4);
        std::memcpy(bytes + 32, &second, 4);
    }
    std::memcpy(tail, &scale, 4);
}

void encode_q4(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    __m256 least = _mm256_loadu_ps(w), most = least;
    for (int64_t c = 8; c < group; c += 8) {
        least = _mm256_min_ps(least, _mm256_loadu_ps(w + c));
        most = _mm256_max_ps(most, _mm256_loadu_ps(w + c));
    }
    const float low = lowest(least) + 0.0f, high = highest(most) + 0.0f;  // -0 becomes +0
    const uint16_t scale_bits = to_bf16((high - low) / 15.0f), bias_bits = to_bf16(low);
    const float scale = from_bf16(scale_bits);
    const __m256 bias = _mm256_set1_ps(from_bf16(bias_bits)), divisor = _mm256_set1_ps(scale);
    for (int64_t c = 0; c < group; c += 8, bytes += 32) {
        const __m256 above = _mm256_sub_ps(_mm256_loadu_ps(w + c), bias);
        const uint64_t codes =
            scale == 0 ? 0 : pack_bytes(divide_codes(above, divisor, 0.0f, 15.0f));
        const auto nibbles = static_cast<uint32_t>(codes | codes >> 28);
        std::memcpy(bytes, &nibbles, 4);
    }
    std::memcpy(tail, &scale_bits, 2);
    std::memcpy(tail + 16, &bias_bits, 2);
}

}  // namespace

void register_codec_avx2(CodecKernels& table) {
    table.widen_bf16 = widen<bf16_floats>;
    table.widen_f16 = widen<f16_floats>;
    table.largest = largest;
    table.encode_q8 = encode_q8;
    table.encode_q4 = encode_q4;
}

}  // namespace flashmoe
