#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/codebook/codebook.h"
#include "cpu/codec/codec.h"

namespace flashmoe {
namespace {

float from_f16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 0) {  // zero or denormal: mantissa * 2^-24, exactly
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

template <float (*from)(uint16_t)>
void widen(const uint8_t* bytes, int64_t n, float* to) {
    for (int64_t i = 0; i < n; ++i) {
        uint16_t half;
        std::memcpy(&half, bytes + 2 * i, 2);
        to[i] = from(half);
    }
}

uint32_t largest(const float* w, int64_t n) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < n; ++i) bits = std::max(bits, std::bit_cast<uint32_t>(w[i]) << 1);
    return bits >> 1;
}

void encode_q8(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    const float scale = std::bit_cast<float>(largest(w, group)) / 127.0f;
    const float divisor = scale == 0 ? 1.0f : scale;
    for (int64_t c = 0; c < group; ++c) {
        const float code = std::clamp(std::nearbyint(w[c] / divisor), -127.0f, 127.0f);
        bytes[c / 4 * 32 + c % 4] = static_cast<uint8_t>(static_cast<int8_t>(code));
    }
    std::memcpy(tail, &scale, 4);
}

void encode_q4(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    const auto [least, most] = std::minmax_element(w, w + group);
    const float low = *least + 0.0f, high = *most + 0.0f;  // -0 becomes +0
    const uint16_t scale_bits = to_bf16((high - low) / 15.0f), bias_bits = to_bf16(low);
    const float scale = from_bf16(scale_bits), bias = from_bf16(bias_bits);
    uint8_t codes[kMaxGroup] = {};
    for (int64_t c = 0; c < group && scale != 0; ++c)
        codes[c] =
            static_cast<uint8_t>(std::clamp(std::nearbyint((w[c] - bias) / scale), 0.0f, 15.0f));
    for (int64_t c = 0; c < group; c += 8)
        for (int64_t j = 0; j < 4; ++j)
            bytes[c * 4 + j] = static_cast<uint8_t>(codes[c + j] | (codes[c + 4 + j] << 4));
    std::memcpy(tail, &scale_bits, 2);
    std::memcpy(tail + 16, &bias_bits, 2);
}

// The number of middles between codes that lie below |x|; a middle itself goes to the even code.
uint8_t fp4_code(float x) {
    const float a = std::fabs(x);
    const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                     (a >= 3.5f) + (a > 5.0f);
    return static_cast<uint8_t>(code | (std::signbit(x) ? 8 : 0));
}

void encode_mxfp4(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    const auto exponent = static_cast<int32_t>(largest(w, group) >> 23);
    const int32_t scale = std::max(exponent - 2, 0);
    const float inverse = std::ldexp(1.0f, 127 - scale);
    for (int64_t c = 0; c < group; c += 8)
        for (int64_t j = 0; j < 4; ++j)
            bytes[c * 4 + j] = static_cast<uint8_t>(fp4_code(w[c + j] * inverse) |
                                                    fp4_code(w[c + 4 + j] * inverse) << 4);
    *tail = static_cast<uint8_t>(scale);
}

// The scale byte next to a positive number, halves up.
uint8_t codebook_byte(float scale) {
    const uint32_t rounded = (std::bit_cast<uint32_t>(scale) + (1 << 19)) >> 20;
    const int64_t byte = static_cast<int64_t>(rounded) - kScaleBase;
    return static_cast<uint8_t>(std::clamp<int64_t>(byte, 0, 255));
}

// The number of middles between levels that lie below x.
template <int kBits>
int codebook_nearest(float x) {
    int code = 0;
    for (int i = 0; i + 1 < 1 << kBits; ++i)
        code += x > 0.5f * static_cast<float>(kLevels<kBits>[i] + kLevels<kBits>[i + 1]);
    return code;
}

template <int kBits>
void encode_codebook(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    constexpr int kLow = kCodebookLow<kBits>, kCols = 32 / kLow;
    *tail = codebook_byte(std::bit_cast<float>(largest(w, group)) * kPlainRatio<kBits>);
    const float scale = codebook_scale(*tail);
    for (int64_t c = 0; c < group; ++c) {
        uint8_t* chunk = bytes + c / 32 * kChunkBytes<kBits>;
        const int64_t at = c % 32;
        if (at == 0)
            for (int64_t u = 0; u < kBits; ++u) std::memset(chunk + 32 * u, 0, 4);
        uint8_t& low = chunk[at / kCols * 32 + c % 4];
        const int code = codebook_nearest<kBits>(w[c] / scale);
        low = static_cast<uint8_t>(low | (code & ((1 << kLow) - 1)) << (at % kCols / 4 * kLow));
        if constexpr (kBits > kLow) {
            uint8_t& high = chunk[32 * kLow + c % 4];
            high = static_cast<uint8_t>(high | (code >> kLow) << (at / 4));
        }
    }
}

}  // namespace

void register_codec_scalar(CodecKernels& table) {
    table.widen_bf16 = widen<from_bf16>;
    table.widen_f16 = widen<from_f16>;
    table.largest = largest;
    table.encode_q8 = encode_q8;
    table.encode_q4 = encode_q4;
    table.encode_mxfp4 = encode_mxfp4;
    table.encode_q2 = encode_codebook<2>;
    table.encode_q3 = encode_codebook<3>;
    table.encode_q4n = encode_codebook<4>;
    table.encode_q5 = encode_codebook<5>;
}

}  // namespace flashmoe
