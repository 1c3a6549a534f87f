#include "cpu/parts/attention_part.h"

#include <algorithm>

#include "cpu/elementwise/elementwise.h"
#include "cpu/norm/norm.h"
#include "cpu/rope/rope.h"

namespace flashmoe {
namespace {

struct AttentionRows {
    float *x, *q, *k, *v, *turned, *out;
};

AttentionRows take_rows(PartSpace& space, const AttentionWeights& w, int64_t tokens) {
    const int64_t hidden = tokens * w.qkv[0].cols, wide = tokens * w.heads * w.dim;
    const int64_t q = tokens * w.qkv[0].rows, kv = tokens * w.qkv[1].rows;
    space.reserve(reserved({hidden, q, kv, kv, wide, wide}));
    return {space.take(hidden), space.take(q),    space.take(kv),
            space.take(kv),     space.take(wide), space.take(wide)};
}

// Norms and rotation of queries (into `turned`: with gates between them they lie apart)
// and keys (in place).
void turn(Pool& pool, const AttentionWeights& w, const AttentionRows& at, int64_t tokens,
          const RopeRows& rope) {
    const int64_t q_row = w.qkv[0].rows, k_row = w.kv_heads * w.dim;
    if (w.whole_q_norm) rms_norm(pool, at.q, w.whole_q_norm, tokens, q_row, w.eps, at.q);
    if (w.whole_k_norm) rms_norm(pool, at.k, w.whole_k_norm, tokens, k_row, w.eps, at.k);
    head_norm_rope(pool, {at.q, q_row, q_row / w.heads, w.q_norm, w.eps, rope.cos, rope.sin, tokens,
                          w.heads, w.dim, rope.half, at.turned});
    head_norm_rope(pool, {at.k, k_row, w.dim, w.k_norm, w.eps, rope.cos, rope.sin, tokens,
                          w.kv_heads, w.dim, rope.half, at.k});
}

void attend(Pool& pool, const AttentionWeights& w, const AttentionRows& at, const KvSpan& span) {
    const int64_t tokens = span.end - span.begin;
    const int64_t kv = span.begin * w.kv_heads * w.dim, wide = span.begin * w.heads * w.dim;
    kv_store(pool, {at.k + kv, at.v + kv, span.keys, span.values, span.half, tokens, w.kv_heads,
                    span.context, w.dim, span.start});
    attention(pool, {at.turned + wide,
                     {span.keys, span.values, span.half, w.kv_heads, span.context, w.dim},
                     tokens,
                     w.heads,
                     span.start,
                     w.window,
                     w.sinks,
                     w.scale,
                     at.out + wide});
}

void attend_in_pieces(Pool& pool, const AttentionWeights& w, const AttentionRows& at,
                      const KvSpan& span) {
    const int64_t size = w.window ? kWindowPiece : span.end - span.begin;
    for (KvSpan piece = span; piece.begin < span.end; piece.begin += size, piece.start += size) {
        piece.end = std::min(piece.begin + size, span.end);
        attend(pool, w, at, piece);
    }
}

}  // namespace

void add_attention(Pool& pool, PartSpace& space, const AttentionWeights& w, float* h,
                   int64_t tokens, const RopeRows& rope, const std::vector<KvSpan>& spans) {
    const AttentionRows at = take_rows(space, w, tokens);
    rms_norm(pool, h, w.norm, tokens, w.qkv[0].cols, w.eps, at.x);
    space.multiply(pool, at.x, tokens, w.qkv, {at.q, at.k, at.v});
    float* const projected[] = {at.q, at.k, at.v};
    for (int i = 0; i < 3; ++i)
        if (w.biases[i]) add_bias(pool, projected[i], w.biases[i], tokens, w.qkv[i].rows);
    turn(pool, w, at, tokens, rope);
    for (const KvSpan& span : spans) attend_in_pieces(pool, w, at, span);
    if (w.gated)
        sigmoid_gate(pool,
                     {at.out, at.q + w.dim, w.qkv[0].rows, 2 * w.dim, tokens, w.heads, w.dim});
    space.multiply(pool, at.out, tokens, w.o, {h}, true);
    if (w.biases[3]) add_bias(pool, h, w.biases[3], tokens, w.o[0].rows);
}

}  // namespace flashmoe
