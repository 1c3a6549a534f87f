#include "cpu/routing/routing.h"
#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

using avx512::load;

float exp_sum(const float* x, int64_t n, float shift) {
    const __m512 offset = _mm512_set1_ps(shift);
    __m512 sum = _mm512_setzero_ps();
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 e = avx512::exp(_mm512_sub_ps(load(x + i, mask), offset));
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
    });
    return avx512::sum_lanes(sum);
}

void combine_row(const float* rows, int64_t row, const float* weights, int64_t count, int64_t n,
                 float* out) {
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t j = 0; j < count; ++j)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[j]), load(rows + j * row + i, mask), sum);
        avx512::store(out + i, _mm512_add_ps(load(out + i, mask), sum), mask);
    });
}

}  // namespace

void register_routing_avx512(RoutingKernels& table) { table = {exp_sum, combine_row}; }

}  // namespace flashmoe
