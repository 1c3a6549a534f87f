#include <immintrin.h>

#include "cpu/blocks/blocks.h"
#include "cpu/blocks/product.h"
#include "cpu/blocks/sums_avx2.h"

namespace flashmoe {
namespace {

struct Lanes {
    using Vector = __m256;
    static constexpr int64_t kLanes = 8;
    static constexpr int kRows = 4, kTokens = 3;

    static Vector zero() { return _mm256_setzero_ps(); }
    static Vector load(const float* from) { return _mm256_loadu_ps(from); }
    static Vector fma(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
    static void sums(const Vector (&acc)[kBlockRows], float* y) {
        _mm256_storeu_ps(y, lane_sums(acc));
    }
};

}  // namespace

void register_blocks_avx2(LinearKernels& table) { register_blocks<Lanes>(table); }

}  // namespace flashmoe
