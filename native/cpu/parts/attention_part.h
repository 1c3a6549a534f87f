// The attention of one layer from residual to residual. The arithmetic, in the same order, is that
// of add_attention in src/flashmoe/ops/composed.py.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/attention/attention.h"
#include "cpu/codec/matrix.h"
#include "cpu/parts/space.h"

namespace flashmoe {

struct AttentionWeights {
    const float* norm;  // [hidden]
    float eps;
    std::vector<MatrixView> qkv;   // q [heads * dim (* 2 if gated), hidden], k, v [kv rows, hidden]
    std::vector<MatrixView> o;     // one matrix [hidden, heads * dim]
    const float *q_norm, *k_norm;  // of each head, [dim], or null
    // Of all heads together, [heads * dim] and [kv_heads * dim], or null; not where q is gated.
    const float *whole_q_norm, *whole_k_norm;
    int64_t heads, kv_heads, dim;
    float scale;  // of the scores
    bool gated;   // each head of q is [query | gate]
    // Of the rows of q, k, v and o, or null.
    const float* biases[4];
    const float* sinks;  // see cpu/attention/attention.h, like window
    int64_t window;
};

// Tokens that go through the cache of a layer with a window at a time: a ring has room for so many.
constexpr int64_t kWindowPiece = 512;

// Rotation angles of the tokens: cos and sin [tokens, half].
struct RopeRows {
    const float *cos, *sin;
    int64_t half;
};

// Tokens [begin, end) continue a sequence at position start of these caches.
struct KvSpan {
    int64_t begin, end, start;
    void *keys, *values;  // [kv_heads, context, dim], half or float
    bool half;
    int64_t context;
};

// h [tokens, hidden] += attention of norm(h).
void add_attention(Pool& pool, PartSpace& space, const AttentionWeights& w, float* h,
                   int64_t tokens, const RopeRows& rope, const std::vector<KvSpan>& spans);

}  // namespace flashmoe
