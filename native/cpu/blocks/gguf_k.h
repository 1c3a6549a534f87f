// GGUF's K formats: 256 columns with 6-bit scales (and minima) of 16 or 32 columns each.
#pragma once

#include "cpu/blocks/decoder.h"

namespace flashmoe {
namespace {

// 8 scales and 8 minima of 6 bits in 12 bytes.
struct Scales6 {
    float scale[8], minimum[8];

    Scales6(const uint8_t* packed, float d, float dmin) {
        for (int i = 0; i < 4; ++i) {
            const uint8_t low = packed[i], mid = packed[i + 4], high = packed[i + 8];
            scale[i] = d * static_cast<float>(low & 63);
            minimum[i] = dmin * static_cast<float>(mid & 63);
            scale[i + 4] = d * static_cast<float>((high & 15) | (low >> 6 << 4));
            minimum[i + 4] = dmin * static_cast<float>((high >> 4) | (mid >> 6 << 4));
        }
    }
};

template <>
struct Decoder<Format::q4_k> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const Scales6 s(bytes + 4, load_f16(bytes), load_f16(bytes + 2));
        const uint8_t* codes = bytes + 16;
        for (int j = 0; j < 8; j += 2, codes += 32, out += 64) {
            for (int i = 0; i < 32; ++i)
                out[i] = s.scale[j] * static_cast<float>(codes[i] & 15) - s.minimum[j];
            for (int i = 0; i < 32; ++i)
                out[32 + i] = s.scale[j + 1] * static_cast<float>(codes[i] >> 4) - s.minimum[j + 1];
        }
    }
};

template <>
struct Decoder<Format::q5_k> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const Scales6 s(bytes + 4, load_f16(bytes), load_f16(bytes + 2));
        const uint8_t *high = bytes + 16, *codes = bytes + 48;
        for (int j = 0; j < 8; j += 2, codes += 32, out += 64) {
            for (int i = 0; i < 32; ++i) {
                const int code = (codes[i] & 15) | (high[i] >> j & 1) << 4;
                out[i] = s.scale[j] * static_cast<float>(code) - s.minimum[j];
            }
            for (int i = 0; i < 32; ++i) {
                const int code = codes[i] >> 4 | (high[i] >> (j + 1) & 1) << 4;
                out[32 + i] = s.scale[j + 1] * static_cast<float>(code) - s.minimum[j + 1];
            }
        }
    }
};

template <>
struct Decoder<Format::q6_k> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float d = load_f16(bytes + 208);
        for (int part = 0; part < 16; ++part, out += 16) {  // 16 columns
            const int half = part / 8, quarter = part % 8 / 2, first = part % 2 * 16;
            const uint8_t* low = bytes + 64 * half + 32 * (quarter % 2) + first;
            const uint8_t* high = bytes + 128 + 32 * half + first;
            const float scale = d * static_cast<float>(static_cast<int8_t>(bytes[192 + part]));
            for (int i = 0; i < 16; ++i) {
                const int code = (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (2 * quarter) & 3)
                                                                          << 4;
                out[i] = scale * static_cast<float>(code - 32);
            }
        }
    }
};

template <>
struct Decoder<Format::q2_k> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float d = load_f16(bytes + 80), dmin = load_f16(bytes + 82);
        for (int part = 0; part < 16; ++part, out += 16) {
            const uint8_t* codes = bytes + 16 + part / 8 * 32 + part % 2 * 16;
            const float scale = d * static_cast<float>(bytes[part] & 15);
            const float minimum = dmin * static_cast<float>(bytes[part] >> 4);
            for (int i = 0; i < 16; ++i) {
                const int code = codes[i] >> (part % 8 / 2 * 2) & 3;
                out[i] = scale * static_cast<float>(code) - minimum;
            }
        }
    }
};

template <>
struct Decoder<Format::q3_k> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float d = load_f16(bytes + 108);
        const uint8_t* packed = bytes + 96;
        for (int part = 0; part < 16; ++part, out += 16) {
            const int low = packed[part % 8] >> (part / 8 * 4) & 15;
            const int top = packed[8 + part % 4] >> (part / 4 * 2) & 3;
            const float scale = d * static_cast<float>((low | top << 4) - 32);
            const uint8_t* high = bytes + part % 2 * 16;
            const uint8_t* codes = bytes + 32 + part / 8 * 32 + part % 2 * 16;
            for (int i = 0; i < 16; ++i) {
                const int code = (codes[i] >> (part % 8 / 2 * 2) & 3) | (high[i] >> part / 2 & 1)
                                                                            << 2;
                out[i] = scale * static_cast<float>(code - 4);
            }
        }
    }
};

}  // namespace
}  // namespace flashmoe
