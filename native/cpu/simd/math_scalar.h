// What the scalar kernels share.
#pragma once

#include <cmath>
#include <cstdint>

namespace flashmoe::scalar {

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline float silu(float x) { return x * sigmoid(x); }

// Eight partial sums keep the rounding error of long rows small; their order is fixed.
inline float sum_squares(const float* x, int64_t n) {
    float partial[8] = {};
    for (int64_t i = 0; i < n; ++i) partial[i % 8] += x[i] * x[i];
    return ((partial[0] + partial[4]) + (partial[2] + partial[6])) +
           ((partial[1] + partial[5]) + (partial[3] + partial[7]));
}

}  // namespace flashmoe::scalar
