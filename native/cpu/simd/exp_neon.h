// exp and its relatives on four floats: the same arithmetic as exp_avx2.h.
#pragma once

#include <arm_neon.h>

namespace flashmoe::neon {

// 2^n for integers n in [-126, 127].
inline float32x4_t power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

// e^x within about 1 ulp. Exact 0 and inf at the ends of the range, subnormals included; NaN stays.
inline float32x4_t exp(float32x4_t x) {
    x = vmaxq_f32(vdupq_n_f32(-105.0f), vminq_f32(vdupq_n_f32(89.0f), x));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
    // ln 2 in two parts: the first has few enough bits that n times it is exact.
    float32x4_t r = vfmsq_n_f32(x, n, 0x1.62ep-1f);
    r = vfmsq_n_f32(r, n, 0x1.0bfbe8p-15f);
    // Minimax of (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2: relative error of e^r 3e-9.
    float32x4_t p = vdupq_n_f32(0.00138144672f);
    p = vfmaq_f32(vdupq_n_f32(0.00836878084f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.0416683927f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.166665196f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.49999994f), p, r);
    p = vfmaq_f32(r, vmulq_f32(p, r), r);
    p = vaddq_f32(p, vdupq_n_f32(1.0f));
    // Two factors, since 2^n itself leaves the normal range at both ends.
    const int32x4_t whole = vcvtq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    p = vmulq_f32(p, power_of_two(half));
    return vmulq_f32(p, power_of_two(vsubq_s32(whole, half)));
}

inline float32x4_t sigmoid(float32x4_t x) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    return vdivq_f32(one, vaddq_f32(one, exp(vnegq_f32(x))));
}

inline float32x4_t silu(float32x4_t x) { return vmulq_f32(x, sigmoid(x)); }

}  // namespace flashmoe::neon
