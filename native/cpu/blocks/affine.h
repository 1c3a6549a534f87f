// Affine groups of 2 to 8 bits: codes as a bit stream, a scale, a bias or a zero.
#pragma once

#include "cpu/blocks/decoder.h"

namespace flashmoe {
namespace {

// Types of scales.
struct bf16 {
    static constexpr int kBytes = 2;
    static float load(const uint8_t* bytes) {
        uint16_t half;
        std::memcpy(&half, bytes, 2);
        return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
    }
};
struct f16 {
    static constexpr int kBytes = 2;
    static float load(const uint8_t* bytes) { return load_f16(bytes); }
};
struct f32 {
    static constexpr int kBytes = 4;
    static float load(const uint8_t* bytes) {
        float value;
        std::memcpy(&value, bytes, 4);
        return value;
    }
};

// 8 codes of `bits` bits in `bits` bytes.
template <int bits>
inline void unpack_eight(const uint8_t* __restrict bytes, int32_t* __restrict codes) {
    uint64_t word = 0;
    std::memcpy(&word, bytes, bits);
    // Four codes have at most 32 bits: the shifts are of 32-bit lanes.
    const uint32_t low = static_cast<uint32_t>(word);
    const uint32_t high = static_cast<uint32_t>(word >> (4 * bits));
    constexpr uint32_t kMask = (1u << bits) - 1;
    for (int i = 0; i < 4; ++i) {
        codes[i] = static_cast<int32_t>((low >> (bits * i)) & kMask);
        codes[4 + i] = static_cast<int32_t>((high >> (bits * i)) & kMask);
    }
}

template <int bits, int group>
inline void unpack_codes(const uint8_t* __restrict bytes, int32_t* __restrict codes) {
    for (int i = 0; i < group; i += 8, bytes += bits) unpack_eight<bits>(bytes, codes + i);
}

template <int bits, class Scale, int group>
struct Affine {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        int32_t codes[group];
        unpack_codes<bits, group>(bytes, codes);
        const uint8_t* tail = bytes + group * bits / 8;
        const float scale = Scale::load(tail), bias = Scale::load(tail + Scale::kBytes);
        for (int i = 0; i < group; ++i) out[i] = static_cast<float>(codes[i]) * scale + bias;
    }
};

template <int bits, class Scale, int group>
struct Zero {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        int32_t codes[group];
        unpack_codes<bits, group>(bytes, codes);
        const uint8_t* tail = bytes + group * bits / 8;
        const float scale = Scale::load(tail);
        const int32_t zero = tail[Scale::kBytes];
        for (int i = 0; i < group; ++i) out[i] = static_cast<float>(codes[i] - zero) * scale;
    }
};

#define FLASHMOE_DECODER(kind, name, bits, scale, group) \
    template <>                                          \
    struct Decoder<Format::name##bits##_##scale##_g##group> : kind<bits, scale, group> {};
#define FLASHMOE_AFFINE(bits, scale)                  \
    FLASHMOE_DECODER(Affine, affine, bits, scale, 32) \
    FLASHMOE_DECODER(Affine, affine, bits, scale, 64) \
    FLASHMOE_DECODER(Affine, affine, bits, scale, 128)
#define FLASHMOE_ZERO(bits, scale)                \
    FLASHMOE_DECODER(Zero, zero, bits, scale, 32) \
    FLASHMOE_DECODER(Zero, zero, bits, scale, 128)

FLASHMOE_AFFINE(2, bf16)
FLASHMOE_AFFINE(3, bf16)
FLASHMOE_AFFINE(5, bf16)
FLASHMOE_AFFINE(6, bf16)
FLASHMOE_AFFINE(8, bf16)
FLASHMOE_AFFINE(2, f16)
FLASHMOE_AFFINE(3, f16)
FLASHMOE_AFFINE(4, f16)
FLASHMOE_AFFINE(5, f16)
FLASHMOE_AFFINE(6, f16)
FLASHMOE_AFFINE(8, f16)
FLASHMOE_DECODER(Affine, affine, 2, f32, 32)
FLASHMOE_DECODER(Affine, affine, 3, f32, 32)
FLASHMOE_DECODER(Affine, affine, 4, f32, 32)
FLASHMOE_DECODER(Affine, affine, 5, f32, 32)
FLASHMOE_DECODER(Affine, affine, 6, f32, 32)
FLASHMOE_DECODER(Affine, affine, 8, f32, 32)
FLASHMOE_ZERO(4, bf16)
FLASHMOE_ZERO(8, bf16)
FLASHMOE_ZERO(4, f16)
FLASHMOE_ZERO(8, f16)

#undef FLASHMOE_AFFINE
#undef FLASHMOE_ZERO
#undef FLASHMOE_DECODER

}  // namespace
}  // namespace flashmoe
