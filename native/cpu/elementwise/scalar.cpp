#include "cpu/elementwise/elementwise.h"
#include "cpu/simd/math_scalar.h"

namespace flashmoe {
namespace {

void gate_row(float* x, const float* gate, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] *= scalar::sigmoid(gate[i]);
}

void conv_silu(const float* const* inputs, const float* taps, int64_t width, int64_t n,
               float* out) {
    for (int64_t c = 0; c < n; ++c) {
        float sum = 0.0f;
        for (int64_t j = 0; j < width; ++j) sum += inputs[j][c] * taps[j * n + c];
        out[c] = scalar::silu(sum);
    }
}

}  // namespace

void register_elementwise_scalar(ElementwiseKernels& table) { table = {gate_row, conv_silu}; }

}  // namespace flashmoe
