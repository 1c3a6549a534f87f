// Bindings of the parts around a mixture of experts, and of the head.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "bind/parts.h"
#include "bind/residents.h"
#include "cpu/norm/norm.h"
#include "cpu/parts/moe_part.h"

namespace flashmoe {
namespace {

// Where a router writes; the arrays are kept alive.
struct RoutedView {
    FloatRows x, weights;
    Out ids;
    int32_t* chosen;

    RoutedView(const Out& x_array, const Out& id_array, const Out& weight_array)
        : x(x_array),
          weights(weight_array),
          ids(id_array),
          chosen(output<int32_t>("RoutedView", "ids", id_array, {x.rows, weights.cols})) {
        expect_equal("RoutedView", "rows of weights", x.rows, weights.rows);
    }
};

class RouterPart {
  public:
    RouterPart(const In& norm, float eps, const Matrix& gate, int64_t topk, bool renormalize,
               const std::optional<In>& bias, const std::optional<In>& correction, int64_t groups,
               int64_t chosen_groups, float scale) {
        w_.gate = {kept_.matrix(kOp, "gate", gate, kAny, kAny)};
        w_.norm = kept_.vector(kOp, "norm", norm, {gate.view.cols});
        w_.bias = bias ? kept_.vector(kOp, "bias", *bias, {gate.view.rows}) : nullptr;
        w_.eps = eps, w_.topk = topk, w_.renormalize = renormalize;
        expect(1 <= topk && topk <= gate.view.rows, kOp,
               "topk: expected 1 to " + std::to_string(gate.view.rows) + ", got " +
                   std::to_string(topk));
        if (correction)
            w_.correction = kept_.vector(kOp, "correction", *correction, {gate.view.rows});
        w_.groups = groups, w_.chosen_groups = chosen_groups, w_.scale = scale;
        expect_groups(kOp, gate.view.rows, groups, chosen_groups, topk);
    }

    double route(Pool& pool, PartSpace& space, const FloatRows& h, const RoutedView& out) const {
        expect_equal(kOp, "columns of h", w_.gate[0].cols, h.cols);
        expect_rows(kOp, "x", out.x, h.rows, h.cols);
        expect_equal(kOp, "columns of ids", w_.topk, out.weights.cols);
        const Routed routed{out.x.data, out.chosen, out.weights.data};
        return timed([&] { norm_and_route(pool, space, w_, h.data, h.rows, routed); });
    }

    double route_ahead(Pool& pool, PartSpace& space, const FloatRows& h,
                       const RoutedView& out) const {
        expect_equal(kOp, "columns of h", w_.gate[0].cols, h.cols);
        expect_equal(kOp, "rows of ids", h.rows, out.x.rows);
        expect_equal(kOp, "columns of ids", w_.topk, out.weights.cols);
        return timed([&] { flashmoe::route_ahead(pool, space, w_, h.data, h.rows, out.chosen); });
    }

  private:
    static constexpr const char* kOp = "RouterPart";

    Kept kept_;
    RouterWeights w_{};
};

class SharedPart {
  public:
    SharedPart(const Matrix& gate_up, const Matrix& down, const Matrix* gate) {
        const int64_t hidden = gate_up.view.cols, inner = gate_up.view.rows / 2;
        expect(gate_up.view.rows % (2 * kBlockRows) == 0, kOp,
               "gate_up rows: expected a multiple of 16, got " + std::to_string(gate_up.view.rows));
        w_.gate_up = kept_.matrix(kOp, "gate_up", gate_up, kAny, hidden);
        w_.down = kept_.matrix(kOp, "down", down, hidden, inner);
        if (gate) w_.gate = {kept_.matrix(kOp, "gate", *gate, 1, hidden)};
    }

    double add_to(Pool& pool, PartSpace& space, const FloatRows& x, const FloatRows& h) const {
        expect_equal(kOp, "columns of x", w_.gate_up.cols, x.cols);
        expect_rows(kOp, "h", h, x.rows, x.cols);
        return timed([&] { add_shared_expert(pool, space, w_, x.data, x.rows, h.data); });
    }

  private:
    static constexpr const char* kOp = "SharedPart";

    Kept kept_;
    SharedWeights w_{};
};

class HeadPart {
  public:
    HeadPart(const In& norm, float eps, const Matrix& lm_head) : eps_(eps) {
        lm_head_ = {kept_.matrix(kOp, "lm_head", lm_head, kAny, kAny)};
        norm_ = kept_.vector(kOp, "norm", norm, {lm_head.view.cols});
    }

    double logits(Pool& pool, PartSpace& space, const FloatRows& h, const FloatRows& out) const {
        const int64_t hidden = lm_head_[0].cols;
        expect_equal(kOp, "columns of h", hidden, h.cols);
        expect_rows(kOp, "out", out, h.rows, lm_head_[0].rows);
        return timed([&] {
            space.reserve(reserved({h.rows * hidden}));
            float* x = space.take(h.rows * hidden);
            rms_norm(pool, h.data, norm_, h.rows, hidden, eps_, x);
            space.multiply(pool, x, h.rows, lm_head_, {out.data});
        });
    }

  private:
    static constexpr const char* kOp = "HeadPart";

    Kept kept_;
    const float* norm_;
    float eps_;
    std::vector<MatrixView> lm_head_;
};

// Where the records of one token's experts lie: u64 [K] of an array that it keeps alive.
struct RecordsView {
    Out array;
    const uint64_t* data;
    int64_t topk;

    explicit RecordsView(const Out& from)
        : array(from),
          data(output<uint64_t>("RecordsView", "addresses", from, {kAny})),
          topk(extent(from, 0)) {}
};

double token_experts(Pool& pool, PartSpace& space, const ExpertLayout& layout, const FloatRows& x,
                     const RecordsView& records, const FloatRows& weights, const FloatRows& h) {
    const char* op = "add_token_experts";
    const int64_t topk = weights.cols;
    expect_rows(op, "x", x, 1, layout.gate_up.cols);
    expect_rows(op, "h", h, 1, layout.down.rows);
    expect_rows(op, "weights", weights, 1, topk);
    expect_equal(op, "addresses", topk, records.topk);
    expect(std::count(records.data, records.data + topk, 0) == 0, op,
           "addresses: expected records, got 0");
    return timed([&] {
        add_token_experts(pool, space, layout, x.data, records.data, topk, weights.data, h.data);
    });
}

// A whole mixture of experts of one token, where everything that it wants is resident.
class TokenMoePart {
  public:
    // Resident, then seconds of the router, of the shared expert and of the routed ones.
    using Outcome = std::tuple<bool, double, double, double>;

    TokenMoePart(const RouterPart& router, const SharedPart* shared, ResidentTable& table,
                 int64_t layer, const ExpertLayout& layout)
        : router_(router), shared_(shared), table_(table), layer_(layer), layout_(layout) {}

    Outcome add_to(Pool& pool, PartSpace& space, const FloatRows& h, const RoutedView& out) {
        expect_equal("TokenMoePart", "rows of h", 1, h.rows);
        expect_rows("TokenMoePart", "h", h, 1, layout_.down.rows);
        const double routing = router_.route(pool, space, h, out);
        found_.resize(out.weights.cols);
        if (!table_.find(layer_, out.chosen, out.weights.cols, found_.data()))
            return {false, routing, 0.0, 0.0};
        const double shared = shared_ ? shared_->add_to(pool, space, out.x, h) : 0.0;
        const double experts = timed([&] {
            add_token_experts(pool, space, layout_, out.x.data, found_.data(), out.weights.cols,
                              out.weights.data, h.data);
        });
        return {true, routing, shared, experts};
    }

  private:
    const RouterPart& router_;
    const SharedPart* shared_;
    ResidentTable& table_;
    int64_t layer_;
    const ExpertLayout& layout_;
    std::vector<uint64_t> found_;
};

}  // namespace

void bind_moe_parts(nb::module_& m) {
    nb::class_<RoutedView>(m, "RoutedView",
                           "Where a router writes: x f32 [T, H], ids i32 and weights f32 [T, K].")
        .def(nb::init<const Out&, const Out&, const Out&>(), nb::arg("x"), nb::arg("ids"),
             nb::arg("weights"));
    nb::class_<RouterPart>(m, "RouterPart",
                           "Weights of one router, kept alive: a softmax, or\n"
                           "with a correction f32 [E] a sigmoid (see sigmoid_topk).")
        .def(nb::init<const In&, float, const Matrix&, int64_t, bool, const std::optional<In>&,
                      const std::optional<In>&, int64_t, int64_t, float>(),
             nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("topk"),
             nb::arg("renormalize"), nb::arg("bias").none() = nb::none(),
             nb::arg("correction").none() = nb::none(), nb::arg("groups") = 1,
             nb::arg("chosen_groups") = 1, nb::arg("scale") = 1.0f)
        .def("route", &RouterPart::route, nb::arg("pool"), nb::arg("space"), nb::arg("h"),
             nb::arg("out"), "x = norm(h); its topk experts and their weights -> seconds.")
        .def("route_ahead", &RouterPart::route_ahead, nb::arg("pool"), nb::arg("space"),
             nb::arg("h"), nb::arg("out"), "Only the ids, of the experts that h would get here.");
    nb::class_<SharedPart>(m, "SharedPart", "Weights of one shared expert, kept alive.")
        .def(nb::init<const Matrix&, const Matrix&, const Matrix*>(), nb::arg("gate_up"),
             nb::arg("down"), nb::arg("gate").none())
        .def(
            "add_to", &SharedPart::add_to, nb::arg("pool"), nb::arg("space"), nb::arg("x"),
            nb::arg("h"),
            "h [T, H] += sigmoid(x . gate) * SwiGLU(x), the factor if there is a gate -> seconds.");
    using KeepRouter = nb::keep_alive<1, 2>;
    using KeepShared = nb::keep_alive<1, 3>;
    using KeepTable = nb::keep_alive<1, 4>;
    using KeepLayout = nb::keep_alive<1, 6>;
    nb::class_<TokenMoePart>(m, "TokenMoePart",
                             "One layer's router and experts, for a token that misses none.")
        .def(nb::init<const RouterPart&, const SharedPart*, ResidentTable&, int64_t,
                      const ExpertLayout&>(),
             nb::arg("router"), nb::arg("shared").none(), nb::arg("table"), nb::arg("layer"),
             nb::arg("layout"), KeepRouter(), KeepShared(), KeepTable(), KeepLayout())
        .def("add_to", &TokenMoePart::add_to, nb::arg("pool"), nb::arg("space"), nb::arg("h"),
             nb::arg("out"),
             "Route h [1, H]; where all experts are resident, note their uses and h += shared and "
             "routed experts -> (whether they are, seconds of router, shared, routed experts).");
    nb::class_<RecordsView>(m, "RecordsView", "Addresses u64 [K] of expert records, kept alive.")
        .def(nb::init<const Out&>(), nb::arg("addresses"));
    nb::class_<HeadPart>(m, "HeadPart", "Final norm and output matrix, kept alive.")
        .def(nb::init<const In&, float, const Matrix&>(), nb::arg("norm"), nb::arg("eps"),
             nb::arg("lm_head"))
        .def("logits", &HeadPart::logits, nb::arg("pool"), nb::arg("space"), nb::arg("h"),
             nb::arg("out"), "out [T, vocab] = norm(h) @ lm_head.T -> seconds.");
    m.def("add_token_experts", &token_experts, nb::arg("pool"), nb::arg("space"), nb::arg("layout"),
          nb::arg("x"), nb::arg("records"), nb::arg("weights"), nb::arg("h"),
          "h [1, H] += sum over k, ascending, of weights[k] * expert k (x) -> seconds; its record "
          "is\n"
          "at records[k].");
}

void bind_parts(nb::module_& m) {
    nb::class_<PartSpace>(m, "PartSpace", "Work space of layer parts; for one call at a time.")
        .def(nb::init<>())
        .def_prop_ro("nbytes", &PartSpace::nbytes);
    nb::class_<FloatRows>(m, "FloatRows", "A checked view of f32 [rows, cols], kept alive.")
        .def(nb::init<const Out&>(), nb::arg("array"));
    bind_mixer_parts(m);
    bind_moe_parts(m);
}

}  // namespace flashmoe
