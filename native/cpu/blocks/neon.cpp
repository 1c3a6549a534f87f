#include <arm_neon.h>

#include "cpu/blocks/blocks.h"
#include "cpu/blocks/product.h"

namespace flashmoe {
namespace {

struct Lanes {
    struct Vector {
        float32x4_t low, high;
    };
    static constexpr int64_t kLanes = 8;
    static constexpr int kRows = 4, kTokens = 2;

    static Vector zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
    static Vector load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
    static Vector fma(Vector a, Vector b, Vector sum) {
        return {vfmaq_f32(sum.low, a.low, b.low), vfmaq_f32(sum.high, a.high, b.high)};
    }
    static void sums(const Vector (&acc)[kBlockRows], float* y) {
        for (int r = 0; r < kBlockRows; ++r) y[r] = vaddvq_f32(vaddq_f32(acc[r].low, acc[r].high));
    }
};

}  // namespace

void register_blocks_neon(LinearKernels& table) { register_blocks<Lanes>(table); }

}  // namespace flashmoe
