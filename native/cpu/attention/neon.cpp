#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/attention/attention.h"
#include "cpu/simd/exp_neon.h"
#include "cpu/simd/vector_neon.h"

namespace flashmoe {
namespace {

using neon::kLanes;
using neon::load;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Fills the last vector with scores that weigh nothing.
void pad(float* scores, int64_t count) {
    for (; count % kLanes != 0; ++count) scores[count] = -kInfinity;
}

// NaN counts only if there is nothing else.
float largest(const float* padded, int64_t count) {
    float32x4_t max = load(padded);
    for (int64_t j = kLanes; j < count; j += kLanes) max = vmaxnmq_f32(max, load(padded + j));
    return vmaxnmvq_f32(max);
}

float exponentiate(float* padded, int64_t count, float max) {
    const float32x4_t offset = vdupq_n_f32(max);
    float32x4_t sum = vdupq_n_f32(0.0f);
    for (int64_t j = 0; j < count; j += kLanes) {
        const float32x4_t weight = neon::exp(vsubq_f32(load(padded + j), offset));
        vst1q_f32(padded + j, weight);
        sum = vaddq_f32(sum, weight);
    }
    return vaddvq_f32(sum);
}

void absorb(float* scores, int64_t count, SoftmaxState& state, float* values, int64_t dim) {
    pad(scores, count);
    const float max = std::max(state.max, largest(scores, count));
    const float shrink = std::exp(state.max - max);
    state = {max, state.sum * shrink + exponentiate(scores, count, max)};
    if (shrink == 1.0f) return;
    neon::for_vectors(dim, [&](int64_t i, auto lanes) {
        lanes.store(values + i, vmulq_n_f32(lanes.load(values + i), shrink));
    });
}

void merge(SoftmaxState& state, float* values, SoftmaxState more, const float* more_values,
           int64_t dim) {
    const float max = std::max(state.max, more.max);
    const float keep = std::exp(state.max - max), add = std::exp(more.max - max);
    state = {max, state.sum * keep + more.sum * add};
    neon::for_vectors(dim, [&](int64_t i, auto lanes) {
        const float32x4_t kept = vmulq_n_f32(lanes.load(values + i), keep);
        lanes.store(values + i, vfmaq_n_f32(kept, lanes.load(more_values + i), add));
    });
}

}  // namespace

void register_attention_neon(AttentionKernels& table) {
    register_tile_neon(table.tile);
    table.absorb = absorb;
    table.merge = merge;
}

}  // namespace flashmoe
