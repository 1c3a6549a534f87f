#include "cpu/norm/norm.h"
#include "cpu/simd/math_scalar.h"

namespace flashmoe {
namespace {

float rms_scale(const float* x, int64_t n, float eps) {
    return 1.0f / std::sqrt(scalar::sum_squares(x, n) / static_cast<float>(n) + eps);
}

void rms(const float* x, const float* weight, int64_t n, float eps, float* out) {
    const float scale = rms_scale(x, n, eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void gated_rms(float* x, const float* gate, const float* weight, int64_t n, float eps) {
    const float scale = rms_scale(x, n, eps);
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] * scale * weight[i] * scalar::silu(gate[i]);
}

void l2(const float* x, int64_t n, float eps, float scale, float* out) {
    const float factor = scale / std::sqrt(scalar::sum_squares(x, n) + eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}

}  // namespace

void register_norm_scalar(NormKernels& table) { table = {rms, gated_rms, l2}; }

}  // namespace flashmoe
