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
    const auto other = [group](const MatrixView& w) { return w.group && w.group != group; };
    if (std::any_of(matrices.begin(), matrices.end(), other)) {
        for (size_t i = 0; i < matrices.size(); ++i) {
            multiply(pool, x, tokens, {matrices[i]}, {outs[i]}, accumulate);
        }
        return;
    }
    assign(pool, inputs, x, tokens, matrices[0].cols, group);
    linear(pool, inputs.view(x), tokens, matrices, outs, accumulate);
}

}  // namespace flashmoe
