#include "cpu/parts/delta_part.h"

#include <algorithm>

#include "cpu/delta/delta.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/norm/norm.h"

namespace flashmoe {
namespace {

constexpr int64_t kChunk = 64;

struct DeltaRows {
    float *x, *qkv, *z, *a, *b, *mixed, *out;
};

DeltaRows take_rows(PartSpace& space, const DeltaWeights& w, int64_t tokens) {
    const int64_t hidden = tokens * w.in[0].cols, channels = tokens * w.in[0].rows;
    const int64_t values = tokens * w.in[1].rows, heads = tokens * w.value_heads;
    space.reserve(reserved({hidden, channels, values, heads, heads, channels, values}));
    return {space.take(hidden), space.take(channels), space.take(values), space.take(heads),
            space.take(heads),  space.take(channels), space.take(values)};
}

// The rule for tokens [begin, end) of the part, in chunks (0: token by token).
void recur(Pool& pool, const DeltaWeights& w, const DeltaRows& at, const DeltaSpan& span,
           int64_t begin, int64_t end, int64_t chunk) {
    if (begin == end) return;
    const int64_t heads = w.value_heads;
    gated_delta(pool,
                {at.mixed + begin * w.in[0].rows, at.a + begin * heads, at.b + begin * heads,
                 w.a_log, w.dt_bias, span.state, at.out + begin * heads * w.value_dim, end - begin,
                 w.key_heads, heads, w.key_dim, w.value_dim},
                chunk);
}

// Whole blocks at absolute multiples of kChunk in the chunked form, what is left at either end
// token by token: how a prompt is cut into passes does not matter where the cuts fall on such
// multiples.
void recur_span(Pool& pool, const DeltaWeights& w, const DeltaRows& at, const DeltaSpan& span) {
    const int64_t tokens = span.end - span.begin;
    const int64_t head = std::min((kChunk - span.start % kChunk) % kChunk, tokens);
    const int64_t first = span.begin + head;
    const int64_t last = first + (tokens - head) / kChunk * kChunk;
    recur(pool, w, at, span, span.begin, first, 0);
    recur(pool, w, at, span, first, last, kChunk);
    recur(pool, w, at, span, last, span.end, 0);
}

}  // namespace

void add_gated_delta(Pool& pool, PartSpace& space, const DeltaWeights& w, float* h, int64_t tokens,
                     const std::vector<DeltaSpan>& spans) {
    const DeltaRows at = take_rows(space, w, tokens);
    const int64_t channels = w.in[0].rows;
    rms_norm(pool, h, w.norm, tokens, w.in[0].cols, w.eps, at.x);
    space.multiply(pool, at.x, tokens, w.in, {at.qkv, at.z, at.a, at.b});
    for (const DeltaSpan& span : spans) {
        const int64_t from = span.begin * channels;
        causal_conv_silu(pool, {at.qkv + from, w.conv, span.conv, at.mixed + from,
                                span.end - span.begin, channels, w.width});
        recur_span(pool, w, at, span);
    }
    gated_rms_norm(pool, at.out, at.z, w.gated_norm, tokens * w.value_heads, w.value_dim, w.eps);
    space.multiply(pool, at.out, tokens, w.out, {h}, true);
}

}  // namespace flashmoe
