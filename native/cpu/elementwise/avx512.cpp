#include "cpu/elementwise/elementwise.h"
#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

using avx512::load;
using avx512::store;

void gate_row(float* x, const float* gate, int64_t n) {
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 open = avx512::sigmoid(load(gate + i, mask));
        store(x + i, _mm512_mul_ps(load(x + i, mask), open), mask);
    });
}

void conv_silu(const float* const* inputs, const float* taps, int64_t width, int64_t n,
               float* out) {
    avx512::for_vectors(n, [&](int64_t c, __mmask16 mask) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t j = 0; j < width; ++j)
            sum = _mm512_fmadd_ps(load(inputs[j] + c, mask), load(taps + j * n + c, mask), sum);
        store(out + c, avx512::silu(sum), mask);
    });
}

}  // namespace

void register_elementwise_avx512(ElementwiseKernels& table) { table = {gate_row, conv_silu}; }

}  // namespace flashmoe
