#include "cpu/routing/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/grain.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

float rank(float logit) {
    return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

// Insertion into a short sorted list: strict comparison keeps the lower id first among equals.
void select(const float* logits, int64_t experts, int64_t topk, int32_t* ids) {
    for (int64_t expert = 0; expert < experts; ++expert) {
        const float score = rank(logits[expert]);
        int64_t place = std::min(expert, topk);
        if (place == topk && !(score > rank(logits[ids[topk - 1]]))) continue;
        if (place == topk) --place;
        for (; place > 0 && score > rank(logits[ids[place - 1]]); --place)
            ids[place] = ids[place - 1];
        ids[place] = static_cast<int32_t>(expert);
    }
}

void weigh(const SoftmaxTopk& call, const float* logits, const int32_t* ids, float* weights) {
    const float largest = logits[ids[0]];
    const float total = kernels().routing.exp_sum(logits, call.experts, largest);
    for (int64_t k = 0; k < call.topk; ++k) weights[k] = std::exp(logits[ids[k]] - largest) / total;
    const float chosen = std::accumulate(weights, weights + call.topk, 0.0f);
    const float factor = call.renormalize ? call.scale / chosen : call.scale;
    for (int64_t k = 0; k < call.topk; ++k) weights[k] *= factor;
}

constexpr int64_t kPiece = 1024;  // floats of one row: a decode step has work for several threads

}  // namespace

void softmax_topk(const SoftmaxTopk& call) {
    for (int64_t token = 0; token < call.tokens; ++token) {
        const float* logits = call.logits + token * call.experts;
        int32_t* ids = call.ids + token * call.topk;
        select(logits, call.experts, call.topk, ids);
        weigh(call, logits, ids, call.weights + token * call.topk);
    }
}

void combine(Pool& pool, const Combine& call) {
    const int64_t pieces = (call.dim + kPiece - 1) / kPiece;
    const auto body = [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t token = item / pieces, first = item % pieces * kPiece;
            kernels().routing.combine(call.rows + token * call.topk * call.dim + first, call.dim,
                                      call.weights + token * call.topk, call.topk,
                                      std::min(kPiece, call.dim - first),
                                      call.out + token * call.dim + first);
        }
    };
    pool.parallel_for(call.tokens * pieces, cheap_grain(kPiece * call.topk), body);
}

}  // namespace flashmoe
