// The gated delta rule: a linear attention whose state S [key_dim, value_dim] decays and is
// corrected at every token. Per value head h, with key head h / (value_heads / key_heads):
//
//     q, k = q / |q| / sqrt(key_dim), k / |k|        decay = exp(-exp(a_log) softplus(a + dt_bias))
//     S = decay S;  d = sigmoid(b) (v - S^T k);  S = S + k d^T;  out = S^T q
//
// Heads are independent: they are what threads share out (value heads, or in the chunked form key
// heads).
#pragma once

#include <cstdint>

#include "cpu/tile/tile.h"

namespace flashmoe {

class Pool;

constexpr int64_t kMaxDeltaChunk = 128;

// One token of one head, q and k normalised.
struct DeltaToken {
    const float *q, *k, *v;
    float decay, beta;
};

struct DeltaKernels {
    TileKernels tile;
    // One step of the rule: updates state [key_dim, value_dim], writes out [value_dim].
    void (*step)(const DeltaToken& token, int64_t key_dim, int64_t value_dim, float* state,
                 float* out);
    // x[i] = exp(x[i]).
    void (*exp)(float* x, int64_t n);
};

void register_delta_scalar(DeltaKernels& table);
void register_delta_avx2(DeltaKernels& table);
void register_delta_neon(DeltaKernels& table);

struct GatedDelta {
    const float* qkv;              // [tokens, 2 * key_heads * key_dim + value_heads * value_dim]
    const float *a, *b;            // [tokens, value_heads]
    const float *a_log, *dt_bias;  // [value_heads]
    float* state;                  // [value_heads, key_dim, value_dim], updated
    float* out;                    // [tokens, value_heads, value_dim]
    int64_t tokens, key_heads, value_heads, key_dim, value_dim;

    const float* row(int64_t token) const {
        return qkv + token * (2 * key_heads * key_dim + value_heads * value_dim);
    }
    int64_t key_head(int64_t head) const { return head / (value_heads / key_heads); }
    const float* v(int64_t token, int64_t head) const {
        return row(token) + 2 * key_heads * key_dim + head * value_dim;
    }
    float* head_state(int64_t head) const { return state + head * key_dim * value_dim; }
    float* head_out(int64_t token, int64_t head) const {
        return out + (token * value_heads + head) * value_dim;
    }
};

// Normalised query (scaled by key_dim^-0.5) and key of one key head, [key_dim] each.
void delta_query(const GatedDelta& call, int64_t token, int64_t key_head, float* q);
void delta_key(const GatedDelta& call, int64_t token, int64_t key_head, float* k);

// log(decay) and beta of one value head.
float delta_log_decay(const GatedDelta& call, int64_t token, int64_t head);
float delta_beta(const GatedDelta& call, int64_t token, int64_t head);

// chunk 0: token by token; else chunks of that many tokens (at most kMaxDeltaChunk) as dense
// products: faster for prompts, equal up to rounding.
void gated_delta(Pool& pool, const GatedDelta& call, int64_t chunk);

// The chunked form of all value heads of one key head; scratch holds delta_chunk_floats floats.
int64_t delta_chunk_floats(const GatedDelta& call, int64_t chunk);
void delta_chunked(const GatedDelta& call, int64_t key_head, int64_t chunk, float* scratch);

}  // namespace flashmoe
