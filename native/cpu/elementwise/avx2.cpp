#include "cpu/elementwise/elementwise.h"
#include "cpu/simd/exp_avx2.h"
#include "cpu/simd/vector_avx2.h"

namespace flashmoe {
namespace {

using avx2::load;
using avx2::load_first;

void gate_row(float* x, const float* gate, int64_t n) {
    const auto gated = [](__m256 v, __m256 g) { return _mm256_mul_ps(v, avx2::sigmoid(g)); };
    avx2::for_vectors(
        n, [&](int64_t i) { _mm256_storeu_ps(x + i, gated(load(x + i), load(gate + i))); },
        [&](int64_t i, int64_t count) {
            avx2::store_first(x + i, count,
                              gated(load_first(x + i, count), load_first(gate + i, count)));
        });
}

void conv_silu(const float* const* inputs, const float* taps, int64_t width, int64_t n,
               float* out) {
    // read(p) loads the same lanes of an input row and of a row of taps.
    const auto convolved = [&](int64_t c, auto read) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t j = 0; j < width; ++j)
            sum = _mm256_fmadd_ps(read(inputs[j] + c), read(taps + j * n + c), sum);
        return avx2::silu(sum);
    };
    avx2::for_vectors(
        n,
        [&](int64_t c) {
            _mm256_storeu_ps(out + c, convolved(c, [](const float* p) { return load(p); }));
        },
        [&](int64_t c, int64_t count) {
            const auto read = [count](const float* p) { return load_first(p, count); };
            avx2::store_first(out + c, count, convolved(c, read));
        });
}

}  // namespace

void register_elementwise_avx2(ElementwiseKernels& table) { table = {gate_row, conv_silu}; }

}  // namespace flashmoe
