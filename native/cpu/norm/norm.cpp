#include "cpu/norm/norm.h"

#include "cpu/grain.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {

void rms_norm(Pool& pool, const float* x, const float* weight, int64_t rows, int64_t n, float eps,
              float* out) {
    const auto kernel = kernels().norm.rms;
    pool.parallel_for(rows, cheap_grain(n), [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row)
            kernel(x + row * n, weight, n, eps, out + row * n);
    });
}

void gated_rms_norm(Pool& pool, float* x, const float* gate, const float* weight, int64_t rows,
                    int64_t n, float eps) {
    const auto kernel = kernels().norm.gated_rms;
    pool.parallel_for(rows, cheap_grain(n), [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row)
            kernel(x + row * n, gate + row * n, weight, n, eps);
    });
}

}  // namespace flashmoe
