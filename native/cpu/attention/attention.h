// Causal attention of grouped queries over a key/value cache, in one pass (online softmax).
// A layer with a window sees the last `window` keys only, and its cache may be a ring.
//
// Keys are visited in blocks and spans at absolute positions, so a query's result does not depend
// on which other queries share the call nor on the number of threads.
#pragma once

#include <cstdint>

#include "cpu/tile/tile.h"

namespace flashmoe {

class Pool;

// One query's running softmax over the keys seen so far: values = sum of exp(score - max) * v.
struct SoftmaxState {
    float max, sum;
};

struct AttentionKernels {
    TileKernels tile;
    // Takes `count` (1..width) more scores into state: turns them into weights exp(score - max),
    // and rescales values [dim] to the new maximum. Scores from count to the next multiple of 8 may
    // be overwritten.
    void (*absorb)(float* scores, int64_t count, SoftmaxState& state, float* values, int64_t dim);
    // Adds the softmax `more` over other keys to state and values.
    void (*merge)(SoftmaxState& state, float* values, SoftmaxState more, const float* more_values,
                  int64_t dim);
};

void register_attention_scalar(AttentionKernels& table);
void register_attention_avx2(AttentionKernels& table);
void register_attention_avx512(AttentionKernels& table);
void register_attention_neon(AttentionKernels& table);

// Blocks of keys start at multiples of this, in a ring as well.
constexpr int64_t kKeyBlock = 64;

struct KvCache {
    // [kv_heads, context, dim], float or IEEE half; position p lies at p % context. If that wraps
    // round, context is a multiple of kKeyBlock.
    const void *keys, *values;
    bool half;
    int64_t kv_heads, context, dim;
    // Rows may lie apart, and values may be narrower than keys or a part of their rows.
    int64_t value_dim = dim, key_row = dim, value_row = dim;
};

struct Attention {
    const float* q;  // [tokens, heads, dim]; heads is a multiple of cache.kv_heads
    KvCache cache;
    int64_t tokens, heads;
    int64_t start;       // position of the first query; query t sees keys up to start + t
    int64_t window;      // and of those the last `window` only, itself among them; 0: all
    const float* sinks;  // [heads], or null: the score of a further key, whose value is zero
    float scale;
    float* out;  // [tokens, heads, cache.value_dim]
};

void attention(Pool& pool, const Attention& call);

struct KvStore {
    const float *k, *v;  // [tokens, kv_heads, dim], [tokens, kv_heads, value_dim]
    void *keys, *values;
    bool half;
    int64_t tokens, kv_heads, context, dim, start;
    int64_t value_dim = dim, key_row = dim, value_row = dim;
};

// Copies k and v into positions start..start + tokens of the caches, modulo context.
void kv_store(Pool& pool, const KvStore& call);

}  // namespace flashmoe
