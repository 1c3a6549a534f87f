// Work space of layer parts, in buffers that only grow: a token loop allocates nothing.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "cpu/linear/activations.h"
#include "cpu/linear/ffn.h"
#include "cpu/workspace.h"

namespace flashmoe {

// Of one engine; for one call at a time. Contents hold until the next part uses it.
class PartSpace {
  public:
    QuantizedRows inputs;  // of the matrix product at hand
    Ffn ffn;
    std::vector<Expert> experts;
    std::vector<int32_t> tokens, offsets;  // of the experts' entries

    // Pieces of one block: `reserve` what all takes of a part will sum up to, then take.
    void reserve(int64_t floats) {
        next_ = block_.floats(floats);
        end_ = next_ + floats;
    }
    float* take(int64_t floats);

    int64_t nbytes() const { return block_.nbytes() + inputs.nbytes() + ffn.nbytes(); }

    // outs[i] [tokens, rows_i] = x [tokens, cols] @ matrices[i].T. One after the other where they
    // want x quantised in groups of different sizes.
    void multiply(Pool& pool, const float* x, int64_t tokens,
                  const std::vector<MatrixView>& matrices, const std::vector<float*>& outs,
                  bool accumulate = false);

  private:
    Workspace block_;
    float *next_ = nullptr, *end_ = nullptr;
};

// Floats to reserve for pieces of these sizes.
inline int64_t reserved(std::initializer_list<int64_t> pieces) {
    int64_t total = 0;
    for (const int64_t floats : pieces) total += Workspace::aligned(floats);
    return total;
}

}  // namespace flashmoe
