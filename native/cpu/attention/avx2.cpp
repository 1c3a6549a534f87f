#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/attention/attention.h"
#include "cpu/simd/exp_avx2.h"
#include "cpu/simd/vector_avx2.h"

namespace flashmoe {
namespace {

using avx2::kLanes;
using avx2::load;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Fills the last vector with scores that weigh nothing.
void pad(float* scores, int64_t count) {
    const int64_t used = count % kLanes;
    if (used == 0) return;
    float* last = scores + count - used;
    _mm256_storeu_ps(last, _mm256_blendv_ps(_mm256_set1_ps(-kInfinity), load(last),
                                            _mm256_castsi256_ps(avx2::first_lanes(used))));
}

float largest(const float* padded, int64_t count) {
    __m256 max = load(padded);
    for (int64_t j = kLanes; j < count; j += kLanes) max = _mm256_max_ps(max, load(padded + j));
    return avx2::max_lanes(max);
}

float exponentiate(float* padded, int64_t count, float max) {
    const __m256 offset = _mm256_set1_ps(max);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t j = 0; j < count; j += kLanes) {
        const __m256 weight = avx2::exp(_mm256_sub_ps(load(padded + j), offset));
        _mm256_storeu_ps(padded + j, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    return avx2::sum_lanes(sum);
}

void scale(float* x, int64_t n, float factor) {
    const __m256 by = _mm256_set1_ps(factor);
    avx2::for_vectors(
        n, [&](int64_t i) { _mm256_storeu_ps(x + i, _mm256_mul_ps(load(x + i), by)); },
        [&](int64_t i, int64_t count) {
            avx2::store_first(x + i, count, _mm256_mul_ps(avx2::load_first(x + i, count), by));
        });
}

void absorb(float* scores, int64_t count, SoftmaxState& state, float* values, int64_t dim) {
    pad(scores, count);
    const float max = std::max(state.max, largest(scores, count));
    const float shrink = std::exp(state.max - max);
    state = {max, state.sum * shrink + exponentiate(scores, count, max)};
    if (shrink != 1.0f) scale(values, dim, shrink);
}

void merge(SoftmaxState& state, float* values, SoftmaxState more, const float* more_values,
           int64_t dim) {
    const float max = std::max(state.max, more.max);
    const float keep = std::exp(state.max - max), add = std::exp(more.max - max);
    state = {max, state.sum * keep + more.sum * add};
    const __m256 old_factor = _mm256_set1_ps(keep), new_factor = _mm256_set1_ps(add);
    const auto mix = [&](__m256 x, __m256 y) {
        return _mm256_fmadd_ps(y, new_factor, _mm256_mul_ps(x, old_factor));
    };
    avx2::for_vectors(
        dim,
        [&](int64_t i) {
            _mm256_storeu_ps(values + i, mix(load(values + i), load(more_values + i)));
        },
        [&](int64_t i, int64_t count) {
            avx2::store_first(
                values + i, count,
                mix(avx2::load_first(values + i, count), avx2::load_first(more_values + i, count)));
        });
}

}  // namespace

void register_attention_avx2(AttentionKernels& table) {
    register_tile_avx2(table.tile);
    table.absorb = absorb;
    table.merge = merge;
}

}  // namespace flashmoe
