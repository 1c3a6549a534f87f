#include <cmath>

#include "cpu/norm/norm.h"
#include "cpu/simd/exp_avx2.h"
#include "cpu/simd/vector_avx2.h"

namespace flashmoe {
namespace {

using avx2::for_vectors;
using avx2::kLanes;
using avx2::load;
using avx2::load_first;
using avx2::store_first;

float sum_squares(const float* x, int64_t n) {
    constexpr int kSums = 4;  // enough to hide the latency of the additions
    __m256 sum[kSums] = {};
    int64_t i = 0;
    for (; i + kSums * kLanes <= n; i += kSums * kLanes)
        for (int s = 0; s < kSums; ++s) {
            const __m256 v = load(x + i + s * kLanes);
            sum[s] = _mm256_fmadd_ps(v, v, sum[s]);
        }
    const auto add = [&](__m256 v) { sum[0] = _mm256_fmadd_ps(v, v, sum[0]); };
    for_vectors(
        n - i, [&](int64_t j) { add(load(x + i + j)); },
        [&](int64_t j, int64_t count) { add(load_first(x + i + j, count)); });
    return avx2::sum_lanes(
        _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

float rms_scale(const float* x, int64_t n, float eps) {
    return 1.0f / std::sqrt(sum_squares(x, n) / static_cast<float>(n) + eps);
}

void rms(const float* x, const float* weight, int64_t n, float eps, float* out) {
    const __m256 scale = _mm256_set1_ps(rms_scale(x, n, eps));
    const auto scaled = [&](__m256 v, __m256 w) {
        return _mm256_mul_ps(_mm256_mul_ps(v, scale), w);
    };
    for_vectors(
        n, [&](int64_t i) { _mm256_storeu_ps(out + i, scaled(load(x + i), load(weight + i))); },
        [&](int64_t i, int64_t count) {
            store_first(out + i, count,
                        scaled(load_first(x + i, count), load_first(weight + i, count)));
        });
}

void gated_rms(float* x, const float* gate, const float* weight, int64_t n, float eps) {
    const __m256 scale = _mm256_set1_ps(rms_scale(x, n, eps));
    const auto gated = [&](__m256 v, __m256 w, __m256 g) {
        return _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(v, scale), w), avx2::silu(g));
    };
    for_vectors(
        n,
        [&](int64_t i) {
            _mm256_storeu_ps(x + i, gated(load(x + i), load(weight + i), load(gate + i)));
        },
        [&](int64_t i, int64_t count) {
            store_first(x + i, count,
                        gated(load_first(x + i, count), load_first(weight + i, count),
                              load_first(gate + i, count)));
        });
}

void l2(const float* x, int64_t n, float eps, float scale, float* out) {
    const __m256 factor = _mm256_set1_ps(scale / std::sqrt(sum_squares(x, n) + eps));
    for_vectors(
        n, [&](int64_t i) { _mm256_storeu_ps(out + i, _mm256_mul_ps(load(x + i), factor)); },
        [&](int64_t i, int64_t count) {
            store_first(out + i, count, _mm256_mul_ps(load_first(x + i, count), factor));
        });
}

}  // namespace

void register_norm_avx2(NormKernels& table) { table = {rms, gated_rms, l2}; }

}  // namespace flashmoe
