#include "cpu/routing/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/grain.h"
#include "cpu/linear/activations.h"
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

// The sum of the two best of a group (of the only one).
float group_score(const float* scores, int64_t count) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    float best = kLowest, second = kLowest;
    for (int64_t i = 0; i < count; ++i) {
        const float score = rank(scores[i]);
        second = std::max(second, std::min(best, score));
        best = std::max(best, score);
    }
    return count > 1 ? best + second : best;
}

// What each token's choice needs, in buffers that are used again.
struct Choice {
    std::vector<float> weights, scores, group_scores;
    std::vector<int32_t> groups;

    // Sigmoids, and their corrected form, by which the choice is made -> NaN if one of them is.
    float score(const SigmoidTopk& call, const float* logits) {
        float sum = 0;
        for (int64_t i = 0; i < call.experts; ++i) {
            weights[i] = 1.0f / (1.0f + std::exp(-logits[i]));
            scores[i] = weights[i] + call.correction[i];
            sum += scores[i];
        }
        return sum;
    }

    // Experts outside of the chosen groups lose.
    void keep_groups(const SigmoidTopk& call) {
        if (call.chosen_groups == call.groups) return;
        const int64_t size = call.experts / call.groups;
        for (int64_t g = 0; g < call.groups; ++g)
            group_scores[g] = group_score(scores.data() + g * size, size);
        select(group_scores.data(), call.groups, call.chosen_groups, groups.data());
        const auto chosen_end = groups.begin() + call.chosen_groups;
        for (int64_t g = 0; g < call.groups; ++g)
            if (std::find(groups.begin(), chosen_end, g) == chosen_end)
                std::fill_n(scores.begin() + g * size, size,
                            -std::numeric_limits<float>::infinity());
    }

    void weigh(const SigmoidTopk& call, const int32_t* ids, float* out) const {
        float chosen = 1e-20f;
        for (int64_t k = 0; k < call.topk; ++k) chosen += weights[ids[k]];
        const float factor = call.renormalize ? call.scale / chosen : call.scale;
        for (int64_t k = 0; k < call.topk; ++k) out[k] = weights[ids[k]] * factor;
    }
};

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

void sigmoid_topk(const SigmoidTopk& call) {
    static thread_local Choice choice;
    grow(choice.weights, call.experts);
    grow(choice.scores, call.experts);
    grow(choice.group_scores, call.groups);
    grow(choice.groups, call.groups);
    for (int64_t token = 0; token < call.tokens; ++token) {
        int32_t* ids = call.ids + token * call.topk;
        float* weights = call.weights + token * call.topk;
        const float sum = choice.score(call, call.logits + token * call.experts);
        choice.keep_groups(call);
        select(choice.scores.data(), call.experts, call.topk, ids);
        choice.weigh(call, ids, weights);
        if (std::isnan(sum)) std::fill_n(weights, call.topk, sum);
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
