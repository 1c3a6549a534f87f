// Bindings of the mixer parts of a layer: attention and the gated delta rule.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "bind/parts.h"
#include "bind/room.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/parts/attention_part.h"
#include "cpu/parts/delta_part.h"

namespace flashmoe {
namespace {

// Rows begin..end of a pass, the position of the first in its sequence, the sequence's state.
template <typename View>
using Spans = std::vector<std::tuple<int64_t, int64_t, int64_t, const View*>>;

template <typename View>
void expect_spans(const char* op, const Spans<View>& spans, int64_t tokens) {
    int64_t at = 0;
    for (const auto& [begin, end, start, view] : spans) {
        expect(begin == at && end > begin && start >= 0, op,
               "spans: expected rows in turn from position 0 on, got " + std::to_string(begin) +
                   ".." + std::to_string(end) + " at " + std::to_string(start));
        at = end;
    }
    expect_equal(op, "rows of the spans", tokens, at);
}

struct RopeView {
    In cos, sin;
    int64_t tokens;
    RopeRows rows;

    RopeView(const In& cosines, const In& sines)
        : cos(cosines), sin(sines), tokens(extent(cosines, 0)) {
        const int64_t half = extent(cos, 1);
        rows = {input<float>("RopeView", "cos", cos, {kAny, kAny}),
                input<float>("RopeView", "sin", sin, {tokens, half}), half};
    }
};

struct KvView {
    Out keys, values;
    int64_t heads, context, dim;
    bool half;

    KvView(const Out& k, const Out& v)
        : keys(k), values(v), heads(extent(k, 0)), context(extent(k, 1)), dim(extent(k, 2)) {
        auto dtype = nb::dtype<float>();
        half = k.dtype().bits == 16;
        if (half) dtype.bits = 16;
        for (const Out* array : {&keys, &values}) {
            expect_array("KvView", "cache", *array, dtype, {heads, context, dim});
            expect_packed("KvView", "cache", *array, 3);
        }
    }
};

class AttentionPart {
  public:
    AttentionPart(const In& norm, float eps, const Matrix& q, const Matrix& k, const Matrix& v,
                  const Matrix& o, const std::optional<In>& q_norm, const std::optional<In>& k_norm,
                  int64_t head_dim, float scale, bool gated, const std::optional<In>& q_bias,
                  const std::optional<In>& k_bias, const std::optional<In>& v_bias,
                  const std::optional<In>& o_bias, const std::optional<In>& sinks, int64_t window) {
        expect(head_dim > 0 && o.view.cols % head_dim == 0 && k.view.rows % head_dim == 0, kOp,
               "head_dim: expected a divisor of the columns of o and the rows of k, got " +
                   std::to_string(head_dim));
        const int64_t hidden = q.view.cols, wide = o.view.cols;
        w_.qkv = {kept_.matrix(kOp, "q", q, gated ? 2 * wide : wide, kAny),
                  kept_.matrix(kOp, "k", k, kAny, hidden),
                  kept_.matrix(kOp, "v", v, k.view.rows, hidden)};
        w_.o = {kept_.matrix(kOp, "o", o, hidden, kAny)};
        w_.norm = kept_.vector(kOp, "norm", norm, {hidden});
        std::tie(w_.q_norm, w_.whole_q_norm) = norms("q_norm", q_norm, head_dim, q.view.rows);
        std::tie(w_.k_norm, w_.whole_k_norm) = norms("k_norm", k_norm, head_dim, k.view.rows);
        expect(!(gated && w_.whole_q_norm), kOp, "q_norm: rows of a gated q are not all queries");
        w_.biases[0] = vector("q_bias", q_bias, q.view.rows);
        w_.biases[1] = vector("k_bias", k_bias, k.view.rows);
        w_.biases[2] = vector("v_bias", v_bias, v.view.rows);
        w_.biases[3] = vector("o_bias", o_bias, hidden);
        w_.sinks = vector("sinks", sinks, wide / head_dim);
        expect(window >= 0, kOp, "window: expected 0 or more, got " + std::to_string(window));
        w_.window = window;
        w_.eps = eps, w_.scale = scale, w_.gated = gated, w_.dim = head_dim;
        w_.heads = wide / head_dim, w_.kv_heads = k.view.rows / head_dim;
        expect(w_.heads % w_.kv_heads == 0, kOp,
               "o: expected a multiple of " + std::to_string(w_.kv_heads) + " heads, got " +
                   std::to_string(w_.heads));
    }

    double add_to(Pool& pool, PartSpace& space, const FloatRows& h, const RopeView& rope,
                  const Spans<KvView>& spans) {
        expect_rows(kOp, "h", h, h.rows, w_.qkv[0].cols);
        expect_equal(kOp, "rows of cos", h.rows, rope.tokens);
        expect(2 * rope.rows.half <= w_.dim, kOp, "cos: more columns than half of head_dim");
        expect_spans(kOp, spans, h.rows);
        spans_.clear();
        for (const auto& [begin, end, start, cache] : spans)
            spans_.push_back(span(begin, end, start, *cache));
        return timed([&] { add_attention(pool, space, w_, h.data, h.rows, rope.rows, spans_); });
    }

  private:
    static constexpr const char* kOp = "AttentionPart";

    // Null if there is none.
    const float* vector(const char* name, const std::optional<In>& array, int64_t size) {
        return array ? kept_.vector(kOp, name, *array, {size}) : nullptr;
    }

    // The norm of each head and that of all together, by its length; one of them is null.
    std::pair<const float*, const float*> norms(const char* name, const std::optional<In>& array,
                                                int64_t head_dim, int64_t whole) {
        const bool each = !array || extent(*array, 0) == head_dim;
        const float* norm = vector(name, array, each ? head_dim : whole);
        return {each ? norm : nullptr, each ? nullptr : norm};
    }

    KvSpan span(int64_t begin, int64_t end, int64_t start, const KvView& cache) const {
        expect_equal(kOp, "heads of the cache", w_.kv_heads, cache.heads);
        expect_equal(kOp, "head_dim of the cache", w_.dim, cache.dim);
        const int64_t tokens = w_.window ? std::min(end - begin, kWindowPiece) : end - begin;
        expect_room(kOp, start, tokens, cache.context, w_.window);
        return {begin,      end,          start, cache.keys.data(), cache.values.data(),
                cache.half, cache.context};
    }

    Kept kept_;
    AttentionWeights w_{};
    std::vector<KvSpan> spans_;
};

struct DeltaView {
    FloatRows conv;
    Out state;
    int64_t heads, key_dim, value_dim;
    float* data;

    DeltaView(const Out& conv_state, const Out& s)
        : conv(conv_state),
          state(s),
          heads(extent(s, 0)),
          key_dim(extent(s, 1)),
          value_dim(extent(s, 2)),
          data(output<float>("DeltaView", "state", s, {kAny, kAny, kAny})) {}
};

class DeltaPart {
  public:
    DeltaPart(const In& norm, float eps, const Matrix& qkv, const Matrix& z, const Matrix& a,
              const Matrix& b, const Matrix& out, const In& conv1d, const In& a_log,
              const In& dt_bias, const In& gated_norm, int64_t key_heads) {
        const int64_t hidden = qkv.view.cols, heads = a.view.rows;
        w_.value_dim = extent(gated_norm, 0), w_.width = extent(conv1d, 1);
        w_.key_heads = key_heads, w_.value_heads = heads, w_.eps = eps;
        const int64_t values = heads * w_.value_dim, keys = qkv.view.rows - values;
        expect(key_heads > 0 && keys > 0 && keys % (2 * key_heads) == 0 && heads % key_heads == 0,
               kOp, "key_heads: does not fit qkv and a, got " + std::to_string(key_heads));
        expect(2 <= w_.width && w_.width <= kMaxConvWidth, kOp, "conv1d: expected 2 to 8 taps");
        w_.key_dim = keys / (2 * key_heads);
        w_.in = {
            kept_.matrix(kOp, "qkv", qkv, kAny, hidden), kept_.matrix(kOp, "z", z, values, hidden),
            kept_.matrix(kOp, "a", a, heads, hidden), kept_.matrix(kOp, "b", b, heads, hidden)};
        w_.out = {kept_.matrix(kOp, "out", out, hidden, values)};
        w_.norm = kept_.vector(kOp, "norm", norm, {hidden});
        w_.conv = kept_.vector(kOp, "conv1d", conv1d, {qkv.view.rows, w_.width});
        w_.a_log = kept_.vector(kOp, "a_log", a_log, {heads});
        w_.dt_bias = kept_.vector(kOp, "dt_bias", dt_bias, {heads});
        w_.gated_norm = kept_.vector(kOp, "gated_norm", gated_norm, {w_.value_dim});
    }

    double add_to(Pool& pool, PartSpace& space, const FloatRows& h, const Spans<DeltaView>& spans) {
        expect_rows(kOp, "h", h, h.rows, w_.in[0].cols);
        expect_spans(kOp, spans, h.rows);
        spans_.clear();
        for (const auto& [begin, end, start, state] : spans)
            spans_.push_back(span(begin, end, start, *state));
        return timed([&] { add_gated_delta(pool, space, w_, h.data, h.rows, spans_); });
    }

  private:
    static constexpr const char* kOp = "DeltaPart";

    DeltaSpan span(int64_t begin, int64_t end, int64_t start, const DeltaView& view) const {
        expect_rows(kOp, "conv state", view.conv, w_.width - 1, w_.in[0].rows);
        expect_equal(kOp, "heads of the state", w_.value_heads, view.heads);
        expect_equal(kOp, "key dim of the state", w_.key_dim, view.key_dim);
        expect_equal(kOp, "value dim of the state", w_.value_dim, view.value_dim);
        return {begin, end, start, view.conv.data, view.data};
    }

    Kept kept_;
    DeltaWeights w_{};
    std::vector<DeltaSpan> spans_;
};

}  // namespace

void bind_mixer_parts(nb::module_& m) {
    nb::class_<RopeView>(m, "RopeView", "cos and sin f32 [T, R / 2] of the tokens of a pass.")
        .def(nb::init<const In&, const In&>(), nb::arg("cos"), nb::arg("sin"));
    nb::class_<KvView>(m, "KvView", "Keys and values f32 or f16 [Hkv, ctx, D] of a sequence.")
        .def(nb::init<const Out&, const Out&>(), nb::arg("k"), nb::arg("v"));
    nb::class_<DeltaView>(m, "DeltaView",
                          "conv f32 [W - 1, C] and state f32 [Hv, Dk, Dv] of a sequence.")
        .def(nb::init<const Out&, const Out&>(), nb::arg("conv"), nb::arg("state"));
    nb::class_<AttentionPart>(m, "AttentionPart", "Weights of one attention layer, kept alive.")
        .def(nb::init<const In&, float, const Matrix&, const Matrix&, const Matrix&, const Matrix&,
                      const std::optional<In>&, const std::optional<In>&, int64_t, float, bool,
                      const std::optional<In>&, const std::optional<In>&, const std::optional<In>&,
                      const std::optional<In>&, const std::optional<In>&, int64_t>(),
             nb::arg("norm"), nb::arg("eps"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
             nb::arg("o"), nb::arg("q_norm").none(), nb::arg("k_norm").none(), nb::arg("head_dim"),
             nb::arg("scale"), nb::arg("gated"), nb::arg("q_bias").none() = nb::none(),
             nb::arg("k_bias").none() = nb::none(), nb::arg("v_bias").none() = nb::none(),
             nb::arg("o_bias").none() = nb::none(), nb::arg("sinks").none() = nb::none(),
             nb::arg("window") = 0)
        .def("add_to", &AttentionPart::add_to, nb::arg("pool"), nb::arg("space"), nb::arg("h"),
             nb::arg("rope"), nb::arg("spans"),
             "h [T, H] += attention of norm(h) -> seconds; spans: (begin, end, start, cache).");
    nb::class_<DeltaPart>(m, "DeltaPart", "Weights of one gated delta layer, kept alive.")
        .def(nb::init<const In&, float, const Matrix&, const Matrix&, const Matrix&, const Matrix&,
                      const Matrix&, const In&, const In&, const In&, const In&, int64_t>(),
             nb::arg("norm"), nb::arg("eps"), nb::arg("qkv"), nb::arg("z"), nb::arg("a"),
             nb::arg("b"), nb::arg("out"), nb::arg("conv1d"), nb::arg("a_log"), nb::arg("dt_bias"),
             nb::arg("gated_norm"), nb::arg("key_heads"))
        .def("add_to", &DeltaPart::add_to, nb::arg("pool"), nb::arg("space"), nb::arg("h"),
             nb::arg("spans"),
             "h [T, H] += gated delta rule of norm(h) -> seconds; spans: (begin, end, start, "
             "state).");
}

}  // namespace flashmoe
