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

float largest(const float* scores, int64_t count) {
    __m512 max = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for_vectors(count, [&](int64_t j, __mmask16 mask) {
        max = _mm512_mask_max_ps(max, mask, max, load(scores + j, mask));
    });
    return _mm512_reduce_max_ps(max);
}

float exponentiate(float* scores, int64_t count, float max) {
    const __m512 offset = _mm512_set1_ps(max);
    __m512 sum = _mm512_setzero_ps();
    for_vectors(count, [&](int64_t j, __mmask16 mask) {
        const __m512 weight = avx512::exp(_mm512_sub_ps(load(scores + j, mask), offset));
        avx512::store(scores + j, weight, mask);
        sum = _mm512_mask_add_ps(sum, mask, sum, weight);
    });
    return avx512::sum_lanes(sum);
}

void absorb(float* scores, int64_t count, SoftmaxState& state, float* values, int64_t dim) {
    const float max = std::max(state.max, largest(scores, count));
    const float shrink = std::exp(state.max - max);
    state = {max, state.sum * shrink + exponentiate(scores, count, max)};
    if (shrink == 1.0f) return;
    const __m512 factor = _mm512_set1_ps(shrink);
    for_vectors(dim, [&](int64_t i, __mmask16 mask) {
        avx512::store(values + i, _mm512_mul_ps(load(values + i, mask), factor), mask);
    });
}

}  // namespace

// Merging stays that of AVX2: it is done once per 512 keys.
void register_attention_avx512(AttentionKernels& table) {
    register_tile_avx512(table.tile);
    table.absorb = absorb;
}

}  // namespace flashmoe
