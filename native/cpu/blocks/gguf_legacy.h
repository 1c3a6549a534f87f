// GGUF's formats with one scale per 32 columns.
#pragma once

#include "cpu/blocks/decoder.h"

namespace flashmoe {
namespace {

// Added to a float, changes nothing, not even the sign of a zero.
constexpr float kNothing = -0.0f;

// codes: 16 bytes, whose low nibbles are columns 0 to 15 and whose high ones are the others.
inline void affine4(const uint8_t* __restrict codes, float d, float offset, float m,
                    float* __restrict out) {
    for (int i = 0; i < 16; ++i) {
        out[i] = d * (static_cast<float>(codes[i] & 15) + offset) + m;
        out[16 + i] = d * (static_cast<float>(codes[i] >> 4) + offset) + m;
    }
}

// The same with a fifth bit of column i in bit i of the 4 bytes at high.
inline void affine5(const uint8_t* __restrict high, const uint8_t* __restrict codes, float d,
                    float offset, float m, float* __restrict out) {
    uint32_t bits;
    std::memcpy(&bits, high, 4);
    for (uint32_t i = 0; i < 16; ++i) {
        const uint32_t low = (codes[i] & 15u) | ((bits >> i & 1) << 4);
        const uint32_t top = (codes[i] >> 4u) | ((bits >> (i + 16) & 1) << 4);
        out[i] = d * (static_cast<float>(static_cast<int32_t>(low)) + offset) + m;
        out[16 + i] = d * (static_cast<float>(static_cast<int32_t>(top)) + offset) + m;
    }
}

template <>
struct Decoder<Format::q4_0> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        affine4(bytes + 2, load_f16(bytes), -8, kNothing, out);
    }
};

template <>
struct Decoder<Format::q4_1> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        affine4(bytes + 4, load_f16(bytes), 0, load_f16(bytes + 2), out);
    }
};

template <>
struct Decoder<Format::q5_0> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        affine5(bytes + 2, bytes + 6, load_f16(bytes), -16, kNothing, out);
    }
};

template <>
struct Decoder<Format::q5_1> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        affine5(bytes + 4, bytes + 8, load_f16(bytes), 0, load_f16(bytes + 2), out);
    }
};

template <>
struct Decoder<Format::q8_0> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float d = load_f16(bytes);
        for (int i = 0; i < 32; ++i)
            out[i] = static_cast<float>(static_cast<int8_t>(bytes[2 + i])) * d;
    }
};

}  // namespace
}  // namespace flashmoe
