#include "cpu/blocks/blocks.h"
#include "cpu/blocks/product.h"

namespace flashmoe {
namespace {

struct Lanes {
    static constexpr int64_t kLanes = 8;
    static constexpr int kRows = 2, kTokens = 2;

    struct Vector {
        float lane[kLanes];
    };

    static Vector zero() { return {}; }
    static Vector load(const float* from) {
        Vector v;
        for (int i = 0; i < kLanes; ++i) v.lane[i] = from[i];
        return v;
    }
    static Vector fma(const Vector& a, const Vector& b, Vector sum) {
        for (int i = 0; i < kLanes; ++i) sum.lane[i] += a.lane[i] * b.lane[i];
        return sum;
    }
    static void sums(const Vector (&acc)[kBlockRows], float* y) {
        for (int r = 0; r < kBlockRows; ++r) {
            y[r] = 0;
            for (const float lane : acc[r].lane) y[r] += lane;
        }
    }
};

}  // namespace

void register_blocks_scalar(LinearKernels& table) { register_blocks<Lanes>(table); }

}  // namespace flashmoe
