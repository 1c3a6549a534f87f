// Gated feed-forward networks: out = down(act(gate . x, up . x)), for one network or for many
// experts at once. Two passes over the pool; between them the hidden rows, int8 unless down is
// bf16.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/linear/activations.h"

namespace flashmoe {

enum class Activation {
    swiglu,          // silu(gate) * up
    swiglu_clamped,  // gpt-oss: g * sigmoid(1.702 g) * (u + 1), g = min(gate, 7), u = up in [-7, 7]
    swiglu_limited,  // DeepSeek-V4: silu(min(gate, 10)) * u, u = up in [-10, 10]
    geglu_tanh,      // Gemma: gelu(gate) * up, gelu by its tanh approximation
};

// Weights of one expert; shapes and formats are common to all.
struct Expert {
    const uint8_t* gate_up;  // [2 * intermediate, hidden], 8 gate rows and 8 up rows in turn
    const uint8_t* down;     // [hidden, intermediate]
    // Added to the products, in the order of the rows; null: nothing.
    const float* gate_up_bias = nullptr;
    const float* down_bias = nullptr;
};

// Where the result of entry j goes: out row dests[j] (null: row j) is set, or, with accumulate,
// out += scale[j] * result (null scale: 1).
struct FfnOutput {
    float* out;
    const int32_t* dests;
    const float* scale;
    bool accumulate;
};

// A run of at most kTokenChunk entries of one expert.
struct Span {
    int64_t expert, begin, end;
};

class Ffn {
  public:
    // gate_up and down give formats and shapes; their data is not used.
    void configure(const MatrixView& gate_up, const MatrixView& down,
                   Activation activation = Activation::swiglu);

    // Expert i is applied to entries [offsets[i], offsets[i + 1]); entry j reads rows.at(j).
    void run(Pool& pool, const Rows& rows, const std::vector<Expert>& experts,
             const int32_t* offsets, const FfnOutput& output);

    // Bytes of the buffers between the two passes.
    int64_t nbytes() const {
        return hidden_.nbytes() + static_cast<int64_t>(sizeof(float) * hidden_floats_.size());
    }

  private:
    void split(size_t experts, const int32_t* offsets);
    void gather(Pool& pool, int64_t entries);
    void gate_up_piece(const Span& span, int64_t piece);
    void store_hidden(const Span& span, int64_t piece, const float* hidden, int64_t width);
    void down_blocks(const Span& span, int64_t block, const FfnOutput& output) const;
    void store_block(const Span& span, int64_t block, float* y, const FfnOutput& output) const;

    MatrixView gate_up_{}, down_{};
    Activation activation_ = Activation::swiglu;
    int64_t piece_ = 0;  // hidden columns per item of the first pass: one group of down
    Rows rows_{};
    const Expert* experts_ = nullptr;
    std::vector<Span> spans_;
    QuantizedRows gathered_;  // only if the kernels want runs
    QuantizedRows hidden_;
    std::vector<float> hidden_floats_;  // only if down is bf16
};

}  // namespace flashmoe
