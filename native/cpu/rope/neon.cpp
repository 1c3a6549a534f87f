#include "cpu/rope/rope.h"
#include "cpu/simd/vector_neon.h"

namespace flashmoe {
namespace {

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    float* y = x + half;
    neon::for_vectors(half, [&](int64_t i, auto lanes) {
        const float32x4_t first = lanes.load(x + i), second = lanes.load(y + i);
        const float32x4_t c = lanes.load(cos + i), s = lanes.load(sin + i);
        lanes.store(x + i, vfmsq_f32(vmulq_f32(first, c), second, s));
        lanes.store(y + i, vfmaq_f32(vmulq_f32(first, s), second, c));
    });
}

}  // namespace

void register_rope_neon(RopeKernels& table) { table = {rotate}; }

}  // namespace flashmoe
