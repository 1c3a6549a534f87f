// RMS norms. A row's result depends on that row alone.
#pragma once

#include <cstdint>

namespace flashmoe {

class Pool;

struct NormKernels {
    // out = x / sqrt(mean(x^2) + eps) * weight over n floats; out may be x.
    void (*rms)(const float* x, const float* weight, int64_t n, float eps, float* out);
    // x = rms(x) * weight * silu(gate).
    void (*gated_rms)(float* x, const float* gate, const float* weight, int64_t n, float eps);
    // out = x / sqrt(sum(x^2) + eps) * scale; out may be x.
    void (*l2)(const float* x, int64_t n, float eps, float scale, float* out);
};

void register_norm_scalar(NormKernels& table);
void register_norm_avx2(NormKernels& table);
void register_norm_avx512(NormKernels& table);
void register_norm_neon(NormKernels& table);

// x, out [rows, n]; weight [n]. out may be x.
void rms_norm(Pool& pool, const float* x, const float* weight, int64_t rows, int64_t n, float eps,
              float* out);

// x (in place), gate [rows, n]; weight [n].
void gated_rms_norm(Pool& pool, float* x, const float* gate, const float* weight, int64_t rows,
                    int64_t n, float eps);

}  // namespace flashmoe
