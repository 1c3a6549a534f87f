#include "cpu/parts/moe_part.h"

#include "cpu/elementwise/elementwise.h"
#include "cpu/norm/norm.h"
#include "cpu/routing/routing.h"

namespace flashmoe {
namespace {

void choose(Pool& pool, PartSpace& space, const RouterWeights& w, int64_t tokens, float* logits,
            const Routed& out) {
    const int64_t experts = w.gate[0].rows;
    space.multiply(pool, out.x, tokens, w.gate, {logits});
    if (w.bias) add_bias(pool, logits, w.bias, tokens, experts);
    if (w.correction)
        sigmoid_topk({logits, w.correction, tokens, experts, w.topk, w.groups, w.chosen_groups,
                      w.renormalize, w.scale, out.ids, out.weights});
    else
        softmax_topk({logits, tokens, experts, w.topk, w.renormalize, 1.0f, out.ids, out.weights});
}

}  // namespace

void norm_and_route(Pool& pool, PartSpace& space, const RouterWeights& w, const float* h,
                    int64_t tokens, const Routed& out) {
    const int64_t logits = tokens * w.gate[0].rows;
    space.reserve(reserved({logits}));
    rms_norm(pool, h, w.norm, tokens, w.gate[0].cols, w.eps, out.x);
    choose(pool, space, w, tokens, space.take(logits), out);
}

void route_ahead(Pool& pool, PartSpace& space, const RouterWeights& w, const float* h,
                 int64_t tokens, int32_t* ids) {
    const int64_t hidden = tokens * w.gate[0].cols, logits = tokens * w.gate[0].rows;
    const int64_t chosen = tokens * w.topk;
    space.reserve(reserved({hidden, logits, chosen}));
    float *x = space.take(hidden), *scores = space.take(logits), *weights = space.take(chosen);
    rms_norm(pool, h, w.norm, tokens, w.gate[0].cols, w.eps, x);
    choose(pool, space, w, tokens, scores, {x, ids, weights});
}

void add_shared_expert(Pool& pool, PartSpace& space, const SharedWeights& w, const float* x,
                       int64_t tokens, float* h) {
    space.reserve(reserved({tokens}));
    float* scale = w.gate.empty() ? nullptr : space.take(tokens);
    if (scale) {
        space.multiply(pool, x, tokens, w.gate, {scale});
        sigmoid(scale, tokens, scale);
    }
    assign(pool, space.inputs, x, tokens, w.gate_up.cols, w.gate_up.group);
    const int32_t offsets[] = {0, static_cast<int32_t>(tokens)};
    space.experts.assign(1, {w.gate_up.data, w.down.data});
    space.ffn.configure(w.gate_up, w.down);
    space.ffn.run(pool, space.inputs.view(x), space.experts, offsets, {h, nullptr, scale, true});
}

void add_token_experts(Pool& pool, PartSpace& space, const ExpertLayout& layout, const float* x,
                       const uint64_t* addresses, int64_t topk, const float* weights, float* h) {
    const int64_t hidden = layout.down.rows;
    space.reserve(reserved({topk * hidden}));
    float* rows = space.take(topk * hidden);
    assign(pool, space.inputs, x, 1, hidden, layout.gate_up.group);
    space.experts.clear();
    space.offsets.clear();
    for (int64_t i = 0; i < topk; ++i) {
        const auto* record = reinterpret_cast<const uint8_t*>(addresses[i]);
        space.experts.push_back(layout.expert(record));
        space.offsets.push_back(static_cast<int32_t>(i));
    }
    space.offsets.push_back(static_cast<int32_t>(topk));
    space.tokens.assign(static_cast<size_t>(topk), 0);
    Rows input = space.inputs.view(x);
    input.index = space.tokens.data();
    space.ffn.configure(layout.gate_up, layout.down, layout.activation);
    // The result of expert k goes to row k.
    const int32_t* dests = space.offsets.data();
    space.ffn.run(pool, input, space.experts, space.offsets.data(), {rows, dests, nullptr, false});
    combine(pool, {rows, weights, 1, topk, hidden, h});
}

}  // namespace flashmoe
