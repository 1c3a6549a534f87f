#include "cpu/rope/rope.h"
#include "cpu/simd/vector_avx2.h"

namespace flashmoe {
namespace {

struct Pair {
    __m256 first, second;
};

Pair turn(__m256 first, __m256 second, __m256 cos, __m256 sin) {
    return {_mm256_fmsub_ps(first, cos, _mm256_mul_ps(second, sin)),
            _mm256_fmadd_ps(second, cos, _mm256_mul_ps(first, sin))};
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    using avx2::load, avx2::load_first;
    float* y = x + half;
    avx2::for_vectors(
        half,
        [&](int64_t i) {
            const Pair pair = turn(load(x + i), load(y + i), load(cos + i), load(sin + i));
            _mm256_storeu_ps(x + i, pair.first);
            _mm256_storeu_ps(y + i, pair.second);
        },
        [&](int64_t i, int64_t count) {
            const Pair pair = turn(load_first(x + i, count), load_first(y + i, count),
                                   load_first(cos + i, count), load_first(sin + i, count));
            avx2::store_first(x + i, count, pair.first);
            avx2::store_first(y + i, count, pair.second);
        });
}

}  // namespace

void register_rope_avx2(RopeKernels& table) { table = {rotate}; }

}  // namespace flashmoe
