#include <cmath>

#include "cpu/norm/norm.h"
#include "cpu/simd/exp_neon.h"
#include "cpu/simd/vector_neon.h"

namespace flashmoe {
namespace {

using neon::for_vectors;
using neon::kLanes;

float sum_squares(const float* x, int64_t n) {
    constexpr int kSums = 4;  // enough to hide the latency of the additions
    float32x4_t sum[kSums] = {};
    int64_t i = 0;
    for (; i + kSums * kLanes <= n; i += kSums * kLanes)
        for (int s = 0; s < kSums; ++s) {
            const float32x4_t v = neon::load(x + i + s * kLanes);
            sum[s] = vfmaq_f32(sum[s], v, v);
        }
    for_vectors(n - i, [&](int64_t j, auto lanes) {
        const float32x4_t v = lanes.load(x + i + j);
        sum[0] = vfmaq_f32(sum[0], v, v);
    });
    return vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

float rms_scale(const float* x, int64_t n, float eps) {
    return 1.0f / std::sqrt(sum_squares(x, n) / static_cast<float>(n) + eps);
}

void rms(const float* x, const float* weight, int64_t n, float eps, float* out) {
    const float scale = rms_scale(x, n, eps);
    for_vectors(n, [&](int64_t i, auto lanes) {
        const float32x4_t scaled = vmulq_n_f32(lanes.load(x + i), scale);
        lanes.store(out + i, vmulq_f32(scaled, lanes.load(weight + i)));
    });
}

void gated_rms(float* x, const float* gate, const float* weight, int64_t n, float eps) {
    const float scale = rms_scale(x, n, eps);
    for_vectors(n, [&](int64_t i, auto lanes) {
        const float32x4_t scaled = vmulq_n_f32(lanes.load(x + i), scale);
        const float32x4_t weighted = vmulq_f32(scaled, lanes.load(weight + i));
        lanes.store(x + i, vmulq_f32(weighted, neon::silu(lanes.load(gate + i))));
    });
}

void l2(const float* x, int64_t n, float eps, float scale, float* out) {
    const float factor = scale / std::sqrt(sum_squares(x, n) + eps);
    for_vectors(n, [&](int64_t i, auto lanes) {
        lanes.store(out + i, vmulq_n_f32(lanes.load(x + i), factor));
    });
}

}  // namespace

void register_norm_neon(NormKernels& table) { table = {rms, gated_rms, l2}; }

}  // namespace flashmoe
