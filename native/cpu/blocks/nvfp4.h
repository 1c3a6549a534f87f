// NVFP4: 4-bit floats, an E4M3 scale per 16 of them, a float32 scale of the tensor.
#pragma once

#include "cpu/blocks/affine.h"

namespace flashmoe {
namespace {

// NaN, which is no scale, becomes 480.
inline float load_e4m3(uint8_t code) {
    const uint32_t magnitude = code & 127, sign = static_cast<uint32_t>(code & 128) << 24;
    // As the top bits of a float32 the exponent is 120 too small; so subnormals come out right too.
    const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

// A code is a sign and 0, 1, 2, 3, 4, 6, 8 or 12 halves.
inline float load_e2m1(uint32_t code) {
    const uint32_t magnitude = code & 7, sign = (code & 8) << 28;
    // As E2M1 in the top bits of a float32, the exponent is 126 too small.
    const float value = std::bit_cast<float>(magnitude << 22) * 0x1p126f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

template <int cols, bool divides>
struct Nvfp4 {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float tensor = f32::load(bytes);
        const uint8_t* scales = bytes + 4;
        const uint8_t* codes = scales + cols / 16;
        for (int g = 0; g < cols / 16; ++g, codes += 8, out += 16) {
            const float e4m3 = load_e4m3(scales[g]);
            const float scale = divides ? e4m3 / tensor : e4m3 * tensor;
            int32_t nibbles[16];
            unpack_codes<4, 16>(codes, nibbles);
            for (int i = 0; i < 16; ++i)
                out[i] = load_e2m1(static_cast<uint32_t>(nibbles[i])) * scale;
        }
    }
};

template <>
struct Decoder<Format::nvfp4_64> : Nvfp4<64, false> {};
template <>
struct Decoder<Format::nvfp4_256> : Nvfp4<256, false> {};
template <>
struct Decoder<Format::nvfp4_div_64> : Nvfp4<64, true> {};
template <>
struct Decoder<Format::nvfp4_div_256> : Nvfp4<256, true> {};

}  // namespace
}  // namespace flashmoe
