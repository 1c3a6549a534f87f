// The router's choice of experts, and the weighted sum of what they return.
#pragma once

#include <cstdint>

namespace flashmoe {

class Pool;

struct RoutingKernels {
    // Sum of exp(x[i] - shift).
    float (*exp_sum)(const float* x, int64_t n, float shift);
    // out[i] += sum_j weights[j] * rows[j * row + i] for i < n; j < count in ascending order.
    void (*combine)(const float* rows, int64_t row, const float* weights, int64_t count, int64_t n,
                    float* out);
};

void register_routing_scalar(RoutingKernels& table);
void register_routing_avx2(RoutingKernels& table);
void register_routing_neon(RoutingKernels& table);

struct SoftmaxTopk {
    const float* logits;  // [tokens, experts]
    int64_t tokens, experts, topk;
    bool renormalize;  // divide the chosen weights by their sum
    float scale;       // multiplies every weight
    int32_t* ids;      // [tokens, topk], by falling logit; equal logits: the lower id first
    float* weights;    // [tokens, topk]
};

// A NaN logit ranks below all others, and makes every weight of its token NaN.
void softmax_topk(const SoftmaxTopk& call);

// Group-limited sigmoid routing (DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.1.2): the
// correction has a say in which experts are chosen, not in their weights.
struct SigmoidTopk {
    const float* logits;      // [tokens, experts]
    const float* correction;  // [experts]
    int64_t tokens, experts, topk;
    int64_t groups, chosen_groups;  // of equal size; topk experts fit the chosen ones
    bool renormalize;               // divide the chosen weights by their sum
    float scale;                    // multiplies every weight
    int32_t* ids;    // [tokens, topk], by falling corrected score; equal ones: the lower id first
    float* weights;  // [tokens, topk]
};

// A NaN among logits or correction ranks below all others, and makes every weight NaN.
void sigmoid_topk(const SigmoidTopk& call);

struct Combine {
    const float* rows;     // [tokens * topk, dim]
    const float* weights;  // [tokens, topk]
    int64_t tokens, topk, dim;
    float* out;  // [tokens, dim], added to
};

void combine(Pool& pool, const Combine& call);

}  // namespace flashmoe
