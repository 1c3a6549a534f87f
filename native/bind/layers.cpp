#include <nanobind/stl/optional.h>

#include "bind/arrays.h"
#include "bind/bind.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/norm/norm.h"
#include "cpu/rope/rope.h"
#include "cpu/routing/routing.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

using nb::gil_scoped_release;

void bind_norm(nb::module_& m) {
    m.def(
        "rms_norm",
        [](Pool& pool, const In& x, const In& weight, float eps, const Out& out) {
            const char* op = "rms_norm";
            const int64_t rows = extent(x, 0), n = extent(x, 1);
            const float* from = input<float>(op, "x", x, {kAny, kAny});
            const float* scale = input<float>(op, "weight", weight, {n});
            float* to = output<float>(op, "out", out, {rows, n});
            const gil_scoped_release unlocked;
            rms_norm(pool, from, scale, rows, n, eps, to);
        },
        nb::arg("pool"), nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"),
        "out = x / sqrt(mean(x^2) + eps) * weight. x, out f32 [T, D]; weight f32 [D].");
    m.def(
        "gated_rms_norm",
        [](Pool& pool, const Out& x, const In& gate, const In& weight, float eps) {
            const char* op = "gated_rms_norm";
            const int64_t rows = extent(x, 0), n = extent(x, 1);
            float* inout = output<float>(op, "x", x, {kAny, kAny});
            const float* by = input<float>(op, "gate", gate, {rows, n});
            const float* scale = input<float>(op, "weight", weight, {n});
            const gil_scoped_release unlocked;
            gated_rms_norm(pool, inout, by, scale, rows, n, eps);
        },
        nb::arg("pool"), nb::arg("x"), nb::arg("gate"), nb::arg("weight"), nb::arg("eps"),
        "In place: x = rms(x) * weight * silu(gate). x, gate f32 [N, D]; weight f32 [D].");
}

HeadNormRope head_norm_rope_call(const In& x, const std::optional<In>& weight, float eps,
                                 const In& cos, const In& sin, const Out& out) {
    const char* op = "head_norm_rope";
    const int64_t tokens = extent(x, 0), heads = extent(x, 1), dim = extent(x, 2);
    const int64_t half = extent(cos, 1);
    const StridedRows from = strided_rows(op, "x", x, {kAny, kAny, kAny});
    HeadNormRope call{};
    call.x = from.data, call.token_stride = from.token_stride, call.head_stride = from.head_stride;
    call.weight = weight ? input<float>(op, "weight", *weight, {dim}) : nullptr;
    call.eps = eps;
    call.cos = input<float>(op, "cos", cos, {tokens, kAny});
    call.sin = input<float>(op, "sin", sin, {tokens, half});
    expect(2 * half <= dim, op,
           "cos: expected at most " + std::to_string(dim / 2) + " columns, got " +
               std::to_string(half));
    call.tokens = tokens, call.heads = heads, call.dim = dim, call.half = half;
    const StridedOut to = strided_out(op, "out", out, {tokens, heads, dim});
    call.out = to.data;
    call.out_token_stride = to.token_stride, call.out_head_stride = to.head_stride;
    return call;
}

void bind_rope(nb::module_& m) {
    m.def(
        "head_norm_rope",
        [](Pool& pool, const In& x, const std::optional<In>& weight, float eps, const In& cos,
           const In& sin, const Out& out) {
            const HeadNormRope call = head_norm_rope_call(x, weight, eps, cos, sin, out);
            const gil_scoped_release unlocked;
            head_norm_rope(pool, call);
        },
        nb::arg("pool"), nb::arg("x"), nb::arg("weight").none(), nb::arg("eps"), nb::arg("cos"),
        nb::arg("sin"), nb::arg("out"),
        "Per-head RMS norm (left out if weight is None), then half-split rope on the first R "
        "dims.\n"
        "x f32 [T, H, D], any strides on T and H; weight f32 [D]; cos, sin f32 [T, R / 2];\n"
        "out f32 [T, H, D], any strides on T and H.");
}

void bind_elementwise(nb::module_& m) {
    m.def(
        "sigmoid_gate",
        [](Pool& pool, const Out& x, const In& gate) {
            const char* op = "sigmoid_gate";
            const int64_t tokens = extent(x, 0), heads = extent(x, 1), dim = extent(x, 2);
            float* inout = output<float>(op, "x", x, {kAny, kAny, kAny});
            const StridedRows by = strided_rows(op, "gate", gate, {tokens, heads, dim});
            const gil_scoped_release unlocked;
            sigmoid_gate(pool,
                         {inout, by.data, by.token_stride, by.head_stride, tokens, heads, dim});
        },
        nb::arg("pool"), nb::arg("x"), nb::arg("gate"),
        "In place: x *= sigmoid(gate). x f32 [T, H, D]; gate f32 [T, H, D], any strides on T and "
        "H.");
    m.def(
        "sigmoid",
        [](const In& x, const Out& out) {
            const int64_t rows = extent(x, 0), n = extent(x, 1);
            const float* from = input<float>("sigmoid", "x", x, {kAny, kAny});
            float* to = output<float>("sigmoid", "out", out, {rows, n});
            const gil_scoped_release unlocked;
            sigmoid(from, rows * n, to);
        },
        nb::arg("x"), nb::arg("out"), "out = 1 / (1 + exp(-x)). x, out f32 [T, N].");
    m.def(
        "all_finite",
        [](const In& x) {
            const int64_t rows = extent(x, 0), n = extent(x, 1);
            const float* from = input<float>("all_finite", "x", x, {kAny, kAny});
            const gil_scoped_release unlocked;
            return all_finite(from, rows * n);
        },
        nb::arg("x"), "Whether no element of x f32 [T, N] is NaN or infinite.");
    m.def(
        "causal_conv_silu",
        [](Pool& pool, const In& u, const In& weight, const Out& state, const Out& out) {
            const char* op = "causal_conv_silu";
            const int64_t tokens = extent(u, 0), channels = extent(u, 1), width = extent(weight, 1);
            const CausalConv call{input<float>(op, "u", u, {kAny, kAny}),
                                  input<float>(op, "weight", weight, {channels, kAny}),
                                  output<float>(op, "state", state, {width - 1, channels}),
                                  output<float>(op, "out", out, {tokens, channels}),
                                  tokens,
                                  channels,
                                  width};
            expect(2 <= width && width <= kMaxConvWidth, op,
                   "weight: expected 2 to 8 taps, got " + std::to_string(width));
            expect(tokens == 0 || call.out != call.u, op,
                   "out: expected an array other than u, got u");
            const gil_scoped_release unlocked;
            causal_conv_silu(pool, call);
        },
        nb::arg("pool"), nb::arg("u"), nb::arg("weight"), nb::arg("state"), nb::arg("out"),
        "out[t] = silu(sum_j weight[:, j] * u[t - W + 1 + j]). u, out f32 [T, C]; weight f32 [C, "
        "W],\n"
        "2 <= W <= 8; state f32 [W - 1, C]: the inputs before u, oldest first, updated.");
}

SigmoidTopk sigmoid_topk_call(const In& logits, const In& correction, int64_t groups,
                              int64_t chosen_groups, const Out& ids, const Out& weights,
                              bool renormalize, float scale) {
    const char* op = "sigmoid_topk";
    const int64_t tokens = extent(logits, 0), experts = extent(logits, 1), topk = extent(ids, 1);
    const SigmoidTopk call{input<float>(op, "logits", logits, {kAny, kAny}),
                           input<float>(op, "correction", correction, {experts}),
                           tokens,
                           experts,
                           topk,
                           groups,
                           chosen_groups,
                           renormalize,
                           scale,
                           output<int32_t>(op, "ids", ids, {tokens, kAny}),
                           output<float>(op, "weights", weights, {tokens, topk})};
    expect_groups(op, experts, groups, chosen_groups, topk);
    return call;
}

void bind_routing(nb::module_& m) {
    m.def(
        "softmax_topk",
        [](const In& logits, const Out& ids, const Out& weights, bool renormalize, float scale) {
            const char* op = "softmax_topk";
            const int64_t tokens = extent(logits, 0), experts = extent(logits, 1);
            const int64_t topk = extent(ids, 1);
            const SoftmaxTopk call{input<float>(op, "logits", logits, {kAny, kAny}),
                                   tokens,
                                   experts,
                                   topk,
                                   renormalize,
                                   scale,
                                   output<int32_t>(op, "ids", ids, {tokens, kAny}),
                                   output<float>(op, "weights", weights, {tokens, topk})};
            expect(1 <= topk && topk <= experts, op,
                   "ids: expected 1 to " + std::to_string(experts) + " columns, got " +
                       std::to_string(topk));
            const gil_scoped_release unlocked;
            softmax_topk(call);
        },
        nb::arg("logits"), nb::arg("ids"), nb::arg("weights"), nb::arg("renormalize"),
        nb::arg("scale"),
        "The K largest of softmax(logits), sorted; equal ones: the lower id first. logits f32 [T, "
        "E];\n"
        "ids i32 [T, K]; weights f32 [T, K], divided by their sum if renormalize, times scale.");
    m.def(
        "sigmoid_topk",
        [](const In& logits, const In& correction, int64_t groups, int64_t chosen_groups,
           const Out& ids, const Out& weights, bool renormalize, float scale) {
            const SigmoidTopk call = sigmoid_topk_call(logits, correction, groups, chosen_groups,
                                                       ids, weights, renormalize, scale);
            const gil_scoped_release unlocked;
            sigmoid_topk(call);
        },
        nb::arg("logits"), nb::arg("correction"), nb::arg("groups"), nb::arg("chosen_groups"),
        nb::arg("ids"), nb::arg("weights"), nb::arg("renormalize"), nb::arg("scale"),
        "The K experts of largest sigmoid(logits) + correction out of the chosen_groups groups of\n"
        "experts whose two best have the largest sum; equal ones: the lower first. logits f32 [T, "
        "E];\n"
        "correction f32 [E]; ids i32 [T, K]; weights f32 [T, K]: the sigmoids, divided by their "
        "sum\n"
        "if renormalize, times scale.");
    m.def(
        "combine",
        [](Pool& pool, const In& rows, const In& weights, const Out& out) {
            const char* op = "combine";
            const int64_t tokens = extent(weights, 0), topk = extent(weights, 1);
            const int64_t dim = extent(out, 1);
            const Combine call{input<float>(op, "rows", rows, {tokens * topk, dim}),
                               input<float>(op, "weights", weights, {kAny, kAny}),
                               tokens,
                               topk,
                               dim,
                               output<float>(op, "out", out, {tokens, kAny})};
            const gil_scoped_release unlocked;
            combine(pool, call);
        },
        nb::arg("pool"), nb::arg("rows"), nb::arg("weights"), nb::arg("out"),
        "out[t] += sum_k weights[t, k] * rows[t * K + k], k ascending. rows f32 [T * K, H];\n"
        "weights f32 [T, K]; out f32 [T, H].");
}

}  // namespace

void bind_mixers(nb::module_& m);

void bind_layers(nb::module_& m) {
    bind_norm(m);
    bind_rope(m);
    bind_elementwise(m);
    bind_routing(m);
    bind_mixers(m);
}

}  // namespace flashmoe
