// The parts of a mixture of experts: router, shared expert, the routed experts of one token. The
// arithmetic, in the same order, is that of src/flashmoe/ops/composed.py.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/codec/matrix.h"
#include "cpu/parts/space.h"

namespace flashmoe {

struct RouterWeights {
    const float* norm;  // [hidden]
    float eps;
    std::vector<MatrixView> gate;  // one matrix [experts, hidden]
    const float* bias;             // [experts], of the logits, or null
    int64_t topk;
    bool renormalize;
    const float* correction;  // [experts]: group-limited sigmoid routing; null: a softmax
    int64_t groups, chosen_groups;
    float scale;
};

// What a router returns for its tokens.
struct Routed {
    float* x;        // [tokens, hidden]: norm(h)
    int32_t* ids;    // [tokens, topk]
    float* weights;  // [tokens, topk]
};

// The experts that the tokens h [tokens, hidden] want.
void norm_and_route(Pool& pool, PartSpace& space, const RouterWeights& w, const float* h,
                    int64_t tokens, const Routed& out);

// ids [tokens, topk] that a later layer's router would choose on the same h.
void route_ahead(Pool& pool, PartSpace& space, const RouterWeights& w, const float* h,
                 int64_t tokens, int32_t* ids);

struct SharedWeights {
    MatrixView gate_up, down;  // [2 * intermediate, hidden] rows alternating by 8, [hidden, ...]
    std::vector<MatrixView> gate;  // one matrix [1, hidden], or none
};

// h += sigmoid(x . gate) * SwiGLU(x), without the factor if there is no gate; x, h [tokens,
// hidden].
void add_shared_expert(Pool& pool, PartSpace& space, const SharedWeights& w, const float* x,
                       int64_t tokens, float* h);

// Formats and shapes inside one expert record.
struct ExpertLayout {
    MatrixView gate_up, down;
    int64_t down_offset;
    Activation activation;
    int64_t bias_offset;  // of f32 [2 * intermediate], then f32 [hidden]; 0: no biases

    int64_t record_bytes_used() const {
        const int64_t biases = static_cast<int64_t>(sizeof(float)) * (gate_up.rows + down.rows);
        return bias_offset ? bias_offset + biases : down_offset + down.nbytes();
    }
    Expert expert(const uint8_t* record) const {
        const auto* bias = reinterpret_cast<const float*>(record + bias_offset);
        return {record, record + down_offset, bias_offset ? bias : nullptr,
                bias_offset ? bias + gate_up.rows : nullptr};
    }
};

// h [hidden] += sum over k, ascending, of weights[k] * expert k (x [hidden]), for k < topk; the
// record of expert k is at addresses[k].
void add_token_experts(Pool& pool, PartSpace& space, const ExpertLayout& layout, const float* x,
                       const uint64_t* addresses, int64_t topk, const float* weights, float* h);

}  // namespace flashmoe
