// Bindings of what mixes tokens: attention with its cache, and the gated delta rule.
#include <nanobind/stl/optional.h>

#include "bind/arrays.h"
#include "bind/bind.h"
#include "bind/room.h"
#include "cpu/attention/attention.h"
#include "cpu/delta/delta.h"
#include "cpu/indexer/indexer.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

using nb::gil_scoped_release;

// Either cache dtype, decided by the keys; the values must agree.
template <typename Array>
bool is_half(const Array& array) {
    return array.dtype() ==
           nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
}

// The distance of a cache's rows: they may be a part of wider ones.
template <typename Array>
int64_t cache_row(const char* op, const char* name, const Array& array, bool half, Shape shape) {
    auto dtype = nb::dtype<float>();
    if (half) dtype.bits = 16;
    expect_array(op, name, array, dtype, shape);
    expect_packed(op, name, array, 1);
    const int64_t heads = extent(array, 0), context = extent(array, 1);
    // Strides of dimensions with one element mean nothing.
    const int64_t row = context > 1 ? array.stride(1) : extent(array, 2);
    if (heads > 1 && context > 0 && array.stride(0) != context * row)
        mismatch(op, name, "stride " + std::to_string(context * row) + " in dimension 0",
                 std::to_string(array.stride(0)));
    return row;
}

KvStore kv_store_call(const In& k, const In& v, const Out& keys, const Out& values, int64_t start,
                      int64_t window) {
    const char* op = "kv_store";
    const int64_t tokens = extent(k, 0), heads = extent(k, 1), dim = extent(k, 2);
    const int64_t context = extent(keys, 1);
    const bool half = is_half(keys);
    const float* k_data = input<float>(op, "k", k, {kAny, kAny, kAny});
    const float* v_data = input<float>(op, "v", v, {tokens, heads, kAny});
    const int64_t value_dim = extent(v, 2);
    const int64_t key_row = cache_row(op, "k_cache", keys, half, {heads, kAny, dim});
    const int64_t value_row = cache_row(op, "v_cache", values, half, {heads, context, value_dim});
    expect_room(op, start, tokens, context, window);
    return {k_data,  v_data, keys.data(), values.data(), half,    tokens,   heads,
            context, dim,    start,       value_dim,     key_row, value_row};
}

Attention attention_call(const In& q, const In& keys, const In& values, int64_t start, float scale,
                         const Out& out, int64_t window, const std::optional<In>& sinks) {
    const char* op = "attention";
    const int64_t tokens = extent(q, 0), heads = extent(q, 1), dim = extent(q, 2);
    const int64_t kv_heads = extent(keys, 0), context = extent(keys, 1);
    const bool half = is_half(keys);
    const float* queries = input<float>(op, "q", q, {kAny, kAny, kAny});
    const int64_t value_dim = extent(values, 2);
    const int64_t key_row = cache_row(op, "k_cache", keys, half, {kAny, kAny, dim});
    const int64_t value_row = cache_row(op, "v_cache", values, half, {kv_heads, context, kAny});
    expect(kv_heads > 0 && heads % kv_heads == 0, op,
           "q: expected a multiple of " + std::to_string(kv_heads) + " heads, got " +
               std::to_string(heads));
    expect_room(op, start, tokens, context, window);
    const float* sink = sinks ? input<float>(op, "sinks", *sinks, {heads}) : nullptr;
    float* to = output<float>(op, "out", out, {tokens, heads, value_dim});
    return {
        queries,
        {keys.data(), values.data(), half, kv_heads, context, dim, value_dim, key_row, value_row},
        tokens,
        heads,
        start,
        window,
        sink,
        scale,
        to};
}

void bind_attention(nb::module_& m) {
    m.def(
        "kv_store",
        [](Pool& pool, const In& k, const In& v, const Out& k_cache, const Out& v_cache,
           int64_t start, int64_t window) {
            const KvStore call = kv_store_call(k, v, k_cache, v_cache, start, window);
            const gil_scoped_release unlocked;
            kv_store(pool, call);
        },
        nb::arg("pool"), nb::arg("k"), nb::arg("v"), nb::arg("k_cache"), nb::arg("v_cache"),
        nb::arg("start"), nb::arg("window") = 0,
        "Copies k f32 [T, Hkv, D] and v f32 [T, Hkv, Dv] to positions start.. of the caches f32 or "
        "f16\n"
        "[Hkv, ctx, D] and [Hkv, ctx, Dv], whose rows may lie apart.\n"
        "With a window: position p at p % ctx, ctx a multiple of 64 and at least T + window - 1.");
    m.def(
        "attention",
        [](Pool& pool, const In& q, const In& k_cache, const In& v_cache, int64_t start,
           float scale, const Out& out, int64_t window, const std::optional<In>& sinks) {
            const Attention call =
                attention_call(q, k_cache, v_cache, start, scale, out, window, sinks);
            const gil_scoped_release unlocked;
            attention(pool, call);
        },
        nb::arg("pool"), nb::arg("q"), nb::arg("k_cache"), nb::arg("v_cache"), nb::arg("start"),
        nb::arg("scale"), nb::arg("out"), nb::arg("window") = 0,
        nb::arg("sinks").none() = nb::none(),
        "Causal grouped-query attention: query t, at position start + t, sees keys 0..start + t,\n"
        "with a window the last `window` of them only, in caches as kv_store fills them then.\n"
        "sinks f32 [Hq]: scores of a further key per head, whose value is zero.\n"
        "q f32 [T, Hq, D], out f32 [T, Hq, Dv]; caches f32 or f16 [Hkv, ctx, D] and [Hkv, ctx, "
        "Dv],\n"
        "whose rows may lie apart or share memory; query head h uses kv head h // (Hq / Hkv).");
}

IndexTopk index_topk_call(const In& q, const In& weights, const In& keys, const In& seen,
                          const Out& ids) {
    const char* op = "index_topk";
    const int64_t tokens = extent(q, 0), heads = extent(q, 1), dim = extent(q, 2);
    IndexTopk call{};
    call.q = input<float>(op, "q", q, {kAny, kAny, kAny});
    call.weights = input<float>(op, "weights", weights, {tokens, heads});
    call.half = is_half(keys);
    auto dtype = nb::dtype<float>();
    if (call.half) dtype.bits = 16;
    expect_array(op, "keys", keys, dtype, {kAny, dim});
    expect_packed(op, "keys", keys, 2);
    call.keys = keys.data();
    call.seen = input<int32_t>(op, "seen", seen, {tokens});
    for (int64_t t = 0; t < tokens; ++t)
        expect(0 <= call.seen[t] && call.seen[t] <= extent(keys, 0), op,
               "seen[" + std::to_string(t) + "]: expected 0 to " + std::to_string(extent(keys, 0)) +
                   ", got " + std::to_string(call.seen[t]));
    call.ids = output<int32_t>(op, "ids", ids, {tokens, kAny});
    call.tokens = tokens, call.heads = heads, call.dim = dim, call.k = extent(ids, 1);
    return call;
}

void bind_indexer(nb::module_& m) {
    m.def(
        "index_topk",
        [](Pool& pool, const In& q, const In& weights, const In& keys, const In& seen,
           const Out& ids) {
            const IndexTopk call = index_topk_call(q, weights, keys, seen, ids);
            const gil_scoped_release unlocked;
            index_topk(pool, call);
        },
        nb::arg("pool"), nb::arg("q"), nb::arg("weights"), nb::arg("keys"), nb::arg("seen"),
        nb::arg("ids"),
        "ids i32 [T, k]: of keys 0..seen[t] - 1 the k with the largest sum over h of\n"
        "weights[t, h] * max(0, q[t, h] . key), ascending; equal ones: the earlier; -1 where "
        "fewer\n"
        "are seen. q f32 [T, Hi, Di], weights f32 [T, Hi], keys f32 or f16 [ctx, Di], seen i32 "
        "[T].");
}

GatedDelta gated_delta_call(const In& qkv, const In& a, const In& b, const In& a_log,
                            const In& dt_bias, const Out& state, const Out& out) {
    const char* op = "gated_delta";
    const int64_t tokens = extent(qkv, 0), heads = extent(state, 0);
    const int64_t key_dim = extent(state, 1), value_dim = extent(state, 2);
    GatedDelta call{};
    call.state = output<float>(op, "state", state, {kAny, kAny, kAny});
    call.qkv = input<float>(op, "qkv", qkv, {kAny, kAny});
    const int64_t keys = extent(qkv, 1) - heads * value_dim;
    call.key_heads = key_dim > 0 ? keys / (2 * key_dim) : 0;
    expect(
        call.key_heads > 0 && keys == 2 * call.key_heads * key_dim && heads % call.key_heads == 0,
        op,
        "qkv: expected 2 * Hk * " + std::to_string(key_dim) + " + " +
            std::to_string(heads * value_dim) + " columns with Hk a divisor of " +
            std::to_string(heads) + ", got " + std::to_string(extent(qkv, 1)));
    call.a = input<float>(op, "a", a, {tokens, heads});
    call.b = input<float>(op, "b", b, {tokens, heads});
    call.a_log = input<float>(op, "a_log", a_log, {heads});
    call.dt_bias = input<float>(op, "dt_bias", dt_bias, {heads});
    call.out = output<float>(op, "out", out, {tokens, heads, value_dim});
    call.tokens = tokens, call.value_heads = heads;
    call.key_dim = key_dim, call.value_dim = value_dim;
    return call;
}

void bind_delta(nb::module_& m) {
    m.def(
        "gated_delta",
        [](Pool& pool, const In& qkv, const In& a, const In& b, const In& a_log, const In& dt_bias,
           const Out& state, const Out& out, int64_t chunk) {
            const GatedDelta call = gated_delta_call(qkv, a, b, a_log, dt_bias, state, out);
            expect(0 <= chunk && chunk <= kMaxDeltaChunk, "gated_delta",
                   "chunk: expected 0 to 128, got " + std::to_string(chunk));
            const gil_scoped_release unlocked;
            gated_delta(pool, call, chunk);
        },
        nb::arg("pool"), nb::arg("qkv"), nb::arg("a"), nb::arg("b"), nb::arg("a_log"),
        nb::arg("dt_bias"), nb::arg("state"), nb::arg("out"), nb::arg("chunk"),
        "The gated delta rule with its q, k normalisation and gates (see "
        "native/cpu/delta/delta.h).\n"
        "qkv f32 [T, 2 * Hk * Dk + Hv * Dv]; a, b f32 [T, Hv]; a_log, dt_bias f32 [Hv];\n"
        "state f32 [Hv, Dk, Dv], updated; out f32 [T, Hv, Dv]; chunk 0: token by token, else the\n"
        "tokens of one chunk (at most 128): faster on prompts, equal up to rounding.");
}

}  // namespace

void bind_mixers(nb::module_& m) {
    bind_attention(m);
    bind_indexer(m);
    bind_delta(m);
}

}  // namespace flashmoe
