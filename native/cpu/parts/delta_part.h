// The gated delta rule of one layer from residual to residual; the arithmetic, in the same order,
// is that of add_gated_delta in src/flashmoe/ops/composed.py.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/codec/matrix.h"
#include "cpu/parts/space.h"

namespace flashmoe {

struct DeltaWeights {
    const float* norm;  // [hidden]
    float eps;
    std::vector<MatrixView>
        in;  // qkv [channels, hidden], z [Vd, hidden], a, b [value heads, hidden]
    std::vector<MatrixView> out;   // one matrix [hidden, Vd]
    const float* conv;             // [channels, width]
    const float *a_log, *dt_bias;  // [value heads]
    const float* gated_norm;       // [value dim]
    int64_t width, key_heads, value_heads, key_dim, value_dim;
};

// Tokens [begin, end) continue a sequence at position start.
struct DeltaSpan {
    int64_t begin, end, start;
    float *conv, *state;  // [width - 1, channels], [value heads, key dim, value dim]: updated
};

// h [tokens, hidden] += gated delta rule of norm(h).
void add_gated_delta(Pool& pool, PartSpace& space, const DeltaWeights& w, float* h, int64_t tokens,
                     const std::vector<DeltaSpan>& spans);

}  // namespace flashmoe
