// Rotary position embedding, half-split pairs (i, i + R / 2), after an optional norm per head.
#pragma once

#include <cstdint>

namespace flashmoe {

class Pool;

struct RopeKernels {
    // x[i], x[half + i] rotated in place by the angle whose cosine and sine are cos[i], sin[i].
    void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);
};

void register_rope_scalar(RopeKernels& table);
void register_rope_avx2(RopeKernels& table);
void register_rope_neon(RopeKernels& table);

struct HeadNormRope {
    const float* x;  // element (t, h, d) at x[t * token_stride + h * head_stride + d]
    int64_t token_stride, head_stride;
    const float* weight;  // [dim], or null: no norm
    float eps;
    const float *cos, *sin;  // [tokens, half]
    int64_t tokens, heads, dim, half;
    float* out;  // [tokens, heads, dim]; may be x if x is laid out like it
    int64_t out_token_stride = heads * dim, out_head_stride = dim;
};

void head_norm_rope(Pool& pool, const HeadNormRope& call);

}  // namespace flashmoe
