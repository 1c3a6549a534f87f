#include <cmath>

#include "cpu/routing/routing.h"

namespace flashmoe {
namespace {

float exp_sum(const float* x, int64_t n, float shift) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - shift);
    return sum;
}

void combine_row(const float* rows, int64_t row, const float* weights, int64_t count, int64_t n,
                 float* out) {
    for (int64_t i = 0; i < n; ++i) {
        float sum = 0.0f;
        for (int64_t j = 0; j < count; ++j) sum += weights[j] * rows[j * row + i];
        out[i] += sum;
    }
}

}  // namespace

void register_routing_scalar(RoutingKernels& table) { table = {exp_sum, combine_row}; }

}  // namespace flashmoe
