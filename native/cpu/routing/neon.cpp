#include "cpu/routing/routing.h"
#include "cpu/simd/exp_neon.h"
#include "cpu/simd/vector_neon.h"

namespace flashmoe {
namespace {

using neon::kLanes;

float exp_sum(const float* x, int64_t n, float shift) {
    const float32x4_t offset = vdupq_n_f32(shift);
    float32x4_t sum = vdupq_n_f32(0.0f);
    const int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
        sum = vaddq_f32(sum, neon::exp(vsubq_f32(neon::load(x + i), offset)));
    float rest[kLanes] = {};  // lanes without an element must not count as e^-shift
    if (whole < n) {
        const neon::First lanes{n - whole};
        lanes.store(rest, neon::exp(vsubq_f32(lanes.load(x + whole), offset)));
    }
    return vaddvq_f32(vaddq_f32(sum, neon::load(rest)));
}

void combine_row(const float* rows, int64_t row, const float* weights, int64_t count, int64_t n,
                 float* out) {
    neon::for_vectors(n, [&](int64_t i, auto lanes) {
        float32x4_t sum = vdupq_n_f32(0.0f);
        for (int64_t j = 0; j < count; ++j)
            sum = vfmaq_n_f32(sum, lanes.load(rows + j * row + i), weights[j]);
        lanes.store(out + i, vaddq_f32(lanes.load(out + i), sum));
    });
}

}  // namespace

void register_routing_neon(RoutingKernels& table) { table = {exp_sum, combine_row}; }

}  // namespace flashmoe
