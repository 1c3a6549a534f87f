// The same IEEE operations as the scalar kernels, 4 columns at a time: the bytes are equal.
#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#include "cpu/codec/codec.h"

namespace flashmoe {
namespace {

float32x4_t bf16_floats(uint16x4_t halves) {
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

float32x4_t f16_floats(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }

template <float32x4_t (*convert)(uint16x4_t)>
void widen(const uint8_t* bytes, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(to + i, convert(vreinterpret_u16_u8(vld1_u8(bytes + 2 * i))));
    if (i == n) return;
    uint16_t halves[4] = {};
    float floats[4];
    std::memcpy(halves, bytes + 2 * i, static_cast<size_t>(2 * (n - i)));
    vst1q_f32(floats, convert(vld1_u16(halves)));
    std::memcpy(to + i, floats, static_cast<size_t>(4 * (n - i)));
}

uint32_t largest(const float* w, int64_t n) {
    uint32x4_t bits = vdupq_n_u32(0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        bits = vmaxq_u32(bits, vshlq_n_u32(vreinterpretq_u32_f32(vld1q_f32(w + i)), 1));
    uint32_t all = vmaxvq_u32(bits);
    for (; i < n; ++i) all = std::max(all, std::bit_cast<uint32_t>(w[i]) << 1);
    return all >> 1;
}

// clip(round-half-even(x / divisor)) as 4 int32.
int32x4_t divide_codes(float32x4_t x, float32x4_t divisor, float low, float high) {
    const float32x4_t code = vrndnq_f32(vdivq_f32(x, divisor));
    return vcvtq_s32_f32(vminq_f32(vmaxq_f32(code, vdupq_n_f32(low)), vdupq_n_f32(high)));
}

// Stores the low bytes of 4 int32, in order.
void store_bytes(uint8_t* to, int32x4_t wide) {
    const int16x4_t words = vmovn_s32(wide);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    std::memcpy(to, &four, 4);
}

void encode_q8(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    const float scale = std::bit_cast<float>(largest(w, group)) / 127.0f;
    const float32x4_t divisor = vdupq_n_f32(scale == 0 ? 1.0f : scale);
    for (int64_t c = 0; c < group; c += 4, bytes += 32)
        store_bytes(bytes, divide_codes(vld1q_f32(w + c), divisor, -127.0f, 127.0f));
    std::memcpy(tail, &scale, 4);
}

void encode_q4(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail) {
    float32x4_t least = vld1q_f32(w), most = least;
    for (int64_t c = 4; c < group; c += 4) {
        least = vminq_f32(least, vld1q_f32(w + c));
        most = vmaxq_f32(most, vld1q_f32(w + c));
    }
    const float low = vminvq_f32(least) + 0.0f, high = vmaxvq_f32(most) + 0.0f;  // -0 becomes +0
    const uint16_t scale_bits = to_bf16((high - low) / 15.0f), bias_bits = to_bf16(low);
    const float scale = from_bf16(scale_bits);
    const float32x4_t bias = vdupq_n_f32(from_bf16(bias_bits)), divisor = vdupq_n_f32(scale);
    const auto codes = [&](int64_t column) {
        const float32x4_t above = vsubq_f32(vld1q_f32(w + column), bias);
        return scale == 0 ? vdupq_n_s32(0) : divide_codes(above, divisor, 0.0f, 15.0f);
    };
    for (int64_t c = 0; c < group; c += 8, bytes += 32)
        store_bytes(bytes, vorrq_s32(codes(c), vshlq_n_s32(codes(c + 4), 4)));
    std::memcpy(tail, &scale_bits, 2);
    std::memcpy(tail + 16, &bias_bits, 2);
}

}  // namespace

void register_codec_neon(CodecKernels& table) {
    table.widen_bf16 = widen<bf16_floats>;
    table.widen_f16 = widen<f16_floats>;
    table.largest = largest;
    table.encode_q8 = encode_q8;
    table.encode_q4 = encode_q4;
}

}  // namespace flashmoe
