#include "cpu/delta/delta.h"

#include <cmath>

#include "cpu/workspace.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

constexpr float kNormEps = 1e-6f;

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void recurrent(const GatedDelta& call, int64_t head, float* scratch) {
    float *q = scratch, *k = scratch + call.key_dim;
    for (int64_t t = 0; t < call.tokens; ++t) {
        delta_query(call, t, call.key_head(head), q);
        delta_key(call, t, call.key_head(head), k);
        const DeltaToken token{q, k, call.v(t, head), std::exp(delta_log_decay(call, t, head)),
                               delta_beta(call, t, head)};
        kernels().delta.step(token, call.key_dim, call.value_dim, call.head_state(head),
                             call.head_out(t, head));
    }
}

}  // namespace

void delta_query(const GatedDelta& call, int64_t token, int64_t key_head, float* q) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(call.key_dim));
    kernels().norm.l2(call.row(token) + key_head * call.key_dim, call.key_dim, kNormEps, scale, q);
}

void delta_key(const GatedDelta& call, int64_t token, int64_t key_head, float* k) {
    const float* raw = call.row(token) + (call.key_heads + key_head) * call.key_dim;
    kernels().norm.l2(raw, call.key_dim, kNormEps, 1.0f, k);
}

float delta_log_decay(const GatedDelta& call, int64_t token, int64_t head) {
    const float a = call.a[token * call.value_heads + head];
    return -std::exp(call.a_log[head]) * softplus(a + call.dt_bias[head]);
}

float delta_beta(const GatedDelta& call, int64_t token, int64_t head) {
    return 1.0f / (1.0f + std::exp(-call.b[token * call.value_heads + head]));
}

void gated_delta(Pool& pool, const GatedDelta& call, int64_t chunk) {
    static thread_local Workspace workspace;
    const bool chunked = chunk > 0;
    const int64_t each =
        Workspace::aligned(chunked ? delta_chunk_floats(call, chunk) : 2 * call.key_dim);
    float* scratch = workspace.floats(pool.threads() * each);
    const int64_t items = chunked ? call.key_heads : call.value_heads;
    pool.parallel_for(items, 1, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t item = begin; item < end; ++item)
            if (chunked)
                delta_chunked(call, item, chunk, scratch + worker * each);
            else
                recurrent(call, item, scratch + worker * each);
    });
}

}  // namespace flashmoe
