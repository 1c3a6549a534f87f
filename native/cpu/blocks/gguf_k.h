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

}  // namespace
}  // namespace flashmoe
