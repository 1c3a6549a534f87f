#include <algorithm>
#include <cmath>

#include "cpu/attention/attention.h"

namespace flashmoe {
namespace {

void absorb(float* scores, int64_t count, SoftmaxState& state, float* values, int64_t dim) {
    const float max = std::max(state.max, *std::max_element(scores, scores + count));
    const float shrink = std::exp(state.max - max);
    float sum = 0.0f;
    for (int64_t j = 0; j < count; ++j) {
        scores[j] = std::exp(scores[j] - max);
        sum += scores[j];
    }
    state = {max, state.sum * shrink + sum};
    for (int64_t d = 0; d < dim; ++d) values[d] *= shrink;
}

void merge(SoftmaxState& state, float* values, SoftmaxState more, const float* more_values,
           int64_t dim) {
    const float max = std::max(state.max, more.max);
    const float keep = std::exp(state.max - max), add = std::exp(more.max - max);
    state = {max, state.sum * keep + more.sum * add};
    for (int64_t d = 0; d < dim; ++d) values[d] = values[d] * keep + more_values[d] * add;
}

}  // namespace

void register_attention_scalar(AttentionKernels& table) {
    register_tile_scalar(table.tile);
    table.absorb = absorb;
    table.merge = merge;
}

}  // namespace flashmoe
