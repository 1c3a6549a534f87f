#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/attention/attention.h"
#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

using avx512::for_vectors;
using avx512::load;
using avx512::store;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float largest(const float* x, int64_t n) {
    __m512 max = _mm512_set1_ps(-kInfinity);
    for_vectors(n, [&](int64_t i, __mmask16 mask) {
        max = _mm512_mask_max_ps(max, mask, max, load(x + i, mask));
    });
    return _mm512_reduce_max_ps(max);
}

float exponentiate(float* x, int64_t n, float max) {
    const __m512 offset = _mm512_set1_ps(max);
    __m512 sum = _mm512_setzero_ps();
    for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 weight = avx512::exp(_mm512_sub_ps(load(x + i, mask), offset));
        store(x + i, weight, mask);
        sum = _mm512_mask_add_ps(sum, mask, sum, weight);
    });
    return avx512::sum_lanes(sum);
}

void absorb(float* scores, int64_t count, SoftmaxState& state, float* values, int64_t dim) {
    const float max = std::max(state.max, largest(scores, count));
    const float shrink = std::exp(state.max - max);
    state = {max, state.sum * shrink + exponentiate(scores, count, max)};
    if (shrink == 1.0f) return;
    for_vectors(dim, [&](int64_t i, __mmask16 mask) {
        store(values + i, _mm512_mul_ps(load(values + i, mask), _mm512_set1_ps(shrink)), mask);
    });
}

void merge(SoftmaxState& state, float* values, SoftmaxState more, const float* more_values,
           int64_t dim) {
    const float max = std::max(state.max, more.max);
    const float keep = std::exp(state.max - max), add = std::exp(more.max - max);
    state = {max, state.sum * keep + more.sum * add};
    for_vectors(dim, [&](int64_t i, __mmask16 mask) {
        const __m512 kept = _mm512_mul_ps(load(values + i, mask), _mm512_set1_ps(keep));
        const __m512 added = load(more_values + i, mask);
        store(values + i, _mm512_fmadd_ps(added, _mm512_set1_ps(add), kept), mask);
    });
}

}  // namespace

void register_attention_avx512(AttentionKernels& table) {
    register_tile_avx512(table.tile);
    table.absorb = absorb;
    table.merge = merge;
}

}  // namespace flashmoe
