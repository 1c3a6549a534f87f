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

}  // namespace
}  // namespace flashmoe
