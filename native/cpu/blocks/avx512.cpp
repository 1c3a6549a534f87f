#include <immintrin.h>

#include "cpu/blocks/blocks.h"
#include "cpu/blocks/product.h"
#include "cpu/blocks/sums_avx2.h"

namespace flashmoe {
namespace {

struct Lanes {
    using Vector = __m512;
    static constexpr int64_t kLanes = 16;
    static constexpr int kRows = 8, kTokens = 3;

    static Vector zero() { return _mm512_setzero_ps(); }
    static Vector load(const float* from) { return _mm512_loadu_ps(from); }
    static Vector fma(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
    static void sums(const Vector (&acc)[kBlockRows], float* y) {
        __m256 halves[kBlockRows];
        for (int r = 0; r < kBlockRows; ++r)
            halves[r] =
                _mm256_add_ps(_mm512_castps512_ps256(acc[r]), _mm512_extractf32x8_ps(acc[r], 1));
        _mm256_storeu_ps(y, lane_sums(halves));
    }
};

}  // namespace

void register_blocks_avx512(LinearKernels& table) { register_blocks<Lanes>(table); }

}  // namespace flashmoe
