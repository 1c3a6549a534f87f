#include "cpu/routing/routing.h"
#include "cpu/simd/exp_avx2.h"
#include "cpu/simd/vector_avx2.h"

namespace flashmoe {
namespace {

using avx2::load;
using avx2::load_first;

float exp_sum(const float* x, int64_t n, float shift) {
    const __m256 offset = _mm256_set1_ps(shift);
    __m256 sum = _mm256_setzero_ps();
    avx2::for_vectors(
        n,
        [&](int64_t i) { sum = _mm256_add_ps(sum, avx2::exp(_mm256_sub_ps(load(x + i), offset))); },
        [&](int64_t i, int64_t count) {
            const __m256 e = avx2::exp(_mm256_sub_ps(load_first(x + i, count), offset));
            const __m256 mask = _mm256_castsi256_ps(avx2::first_lanes(count));
            sum = _mm256_add_ps(sum, _mm256_and_ps(e, mask));
        });
    return avx2::sum_lanes(sum);
}

void combine_row(const float* rows, int64_t row, const float* weights, int64_t count, int64_t n,
                 float* out) {
    const auto weighted = [&](int64_t i, auto read) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t j = 0; j < count; ++j)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(weights[j]), read(rows + j * row + i), sum);
        return _mm256_add_ps(read(out + i), sum);
    };
    avx2::for_vectors(
        n,
        [&](int64_t i) {
            _mm256_storeu_ps(out + i, weighted(i, [](const float* p) { return load(p); }));
        },
        [&](int64_t i, int64_t lanes) {
            const auto read = [lanes](const float* p) { return load_first(p, lanes); };
            avx2::store_first(out + i, lanes, weighted(i, read));
        });
}

}  // namespace

void register_routing_avx2(RoutingKernels& table) { table = {exp_sum, combine_row}; }

}  // namespace flashmoe
