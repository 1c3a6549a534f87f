#include "cpu/rope/rope.h"

namespace flashmoe {
namespace {

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[i], second = x[half + i];
        x[i] = first * cos[i] - second * sin[i];
        x[half + i] = second * cos[i] + first * sin[i];
    }
}

}  // namespace

void register_rope_scalar(RopeKernels& table) { table = {rotate}; }

}  // namespace flashmoe
