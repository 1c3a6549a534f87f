#include <cmath>

#include "cpu/norm/norm.h"
#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

using avx512::for_vectors;
using avx512::kLanes;
using avx512::load;
using avx512::store;

float sum_squares(const float* x, int64_t n) {
    constexpr int kSums = 4;  // enough to hide the latency of the additions
    __m512 sum[kSums] = {};
    int64_t i = 0;
    for (; i + kSums * kLanes <= n; i += kSums * kLanes)
        for (int s = 0; s < kSums; ++s) {
            const __m512 v = load(x + i + s * kLanes);
            sum[s] = _mm512_fmadd_ps(v, v, sum[s]);
        }
    for_vectors(n - i, [&](int64_t j, __mmask16 mask) {
        const __m512 v = load(x + i + j, mask);
        sum[0] = _mm512_fmadd_ps(v, v, sum[0]);
    });
    return avx512::sum_lanes(
        _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

float rms_scale(const float* x, int64_t n, float eps) {
    return 1.0f / std::sqrt(sum_squares(x, n) / static_cast<float>(n) + eps);
}

void rms(const float* x, const float* weight, int64_t n, float eps, float* out) {
    const __m512 scale = _mm512_set1_ps(rms_scale(x, n, eps));
    for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 scaled = _mm512_mul_ps(load(x + i, mask), scale);
        store(out + i, _mm512_mul_ps(scaled, load(weight + i, mask)), mask);
    });
}

void gated_rms(float* x, const float* gate, const float* weight, int64_t n, float eps) {
    const __m512 scale = _mm512_set1_ps(rms_scale(x, n, eps));
    for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 scaled =
            _mm512_mul_ps(_mm512_mul_ps(load(x + i, mask), scale), load(weight + i, mask));
        store(x + i, _mm512_mul_ps(scaled, avx512::silu(load(gate + i, mask))), mask);
    });
}

void l2(const float* x, int64_t n, float eps, float scale, float* out) {
    const __m512 factor = _mm512_set1_ps(scale / std::sqrt(sum_squares(x, n) + eps));
    for_vectors(n, [&](int64_t i, __mmask16 mask) {
        store(out + i, _mm512_mul_ps(load(x + i, mask), factor), mask);
    });
}

}  // namespace

void register_norm_avx512(NormKernels& table) { table = {rms, gated_rms, l2}; }

}  // namespace flashmoe
