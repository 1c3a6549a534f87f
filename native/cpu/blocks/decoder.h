// What the decoders of block formats share. They are plain loops, which the compiler turns into the
// instructions of each set: everything is local to the file that includes it.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "cpu/codec/matrix.h"

namespace flashmoe {
namespace {

// A specialisation per format has
//     static void run(const uint8_t* __restrict bytes, float* __restrict out);
// which writes the weights of one run, rounded as the NumPy twin rounds them.
template <Format format>
struct Decoder;

inline float load_f16(const uint8_t* bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
#if defined(__F16C__)
    return _cvtsh_ss(half);
#elif defined(__aarch64__)
    return static_cast<float>(std::bit_cast<__fp16>(half));
#else
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 0) {  // zero or denormal: mantissa * 2^-24, exactly
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
#endif
}

// values[i] = table[low nibble of byte i], values[16 + i] = table[high nibble of byte i].
inline void look_up(const int8_t (&table)[16], const uint8_t* codes, int8_t* values) {
#if defined(__SSSE3__)
    const __m128i steps = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(pairs, nibble);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values), _mm_shuffle_epi8(steps, low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values + 16), _mm_shuffle_epi8(steps, high));
#else
    for (int i = 0; i < 16; ++i) {
        values[i] = table[codes[i] & 15];
        values[16 + i] = table[codes[i] >> 4];
    }
#endif
}

}  // namespace
}  // namespace flashmoe
