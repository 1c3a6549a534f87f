#include "cpu/elementwise/elementwise.h"
#include "cpu/simd/exp_neon.h"
#include "cpu/simd/vector_neon.h"

namespace flashmoe {
namespace {

void gate_row(float* x, const float* gate, int64_t n) {
    neon::for_vectors(n, [&](int64_t i, auto lanes) {
        const float32x4_t open = neon::sigmoid(lanes.load(gate + i));
        lanes.store(x + i, vmulq_f32(lanes.load(x + i), open));
    });
}

void conv_silu(const float* const* inputs, const float* taps, int64_t width, int64_t n,
               float* out) {
    neon::for_vectors(n, [&](int64_t c, auto lanes) {
        float32x4_t sum = vdupq_n_f32(0.0f);
        for (int64_t j = 0; j < width; ++j)
            sum = vfmaq_f32(sum, lanes.load(inputs[j] + c), lanes.load(taps + j * n + c));
        lanes.store(out + c, neon::silu(sum));
    });
}

}  // namespace

void register_elementwise_neon(ElementwiseKernels& table) { table = {gate_row, conv_silu}; }

}  // namespace flashmoe
