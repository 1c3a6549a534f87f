#include "cpu/parts/space.h"

#include <algorithm>
#include <stdexcept>

namespace flashmoe {

float* PartSpace::take(int64_t floats) {
    float* piece = next_;
    next_ += Workspace::aligned(floats);
    if (next_ > end_) throw std::logic_error("[PartSpace] took more than was reserved");
    return piece;
}

void PartSpace::multiply(Pool& pool, const float* x, int64_t tokens,
                         const std::vector<MatrixView>& matrices, const std::vector<float*>& outs,
                         bool accumulate) {
    int64_t group = 0;
    for (const auto& w : matrices) group = std::max(group, w.group);
    assign(pool, inputs, x, tokens, matrices[0].cols, group);
    linear(pool, inputs.view(x), tokens, matrices, outs, accumulate);
}

}  // namespace flashmoe
