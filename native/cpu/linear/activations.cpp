#include "cpu/linear/activations.h"

#include <functional>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

// Floats per turn of a worker; below that, waking the pool costs more than it saves.
constexpr int64_t kGrainFloats = 16384;

}  // namespace

void QuantizedRows::reserve(int64_t count, int64_t cols, int64_t group) {
    count_ = count;
    cols_ = cols;
    group_ = group;
    if (!group) return;
    grow(codes_, count * cols);
    grow(scales_, count * groups());
    grow(sums_, count * groups());
}

void QuantizedRows::quantize(const float* x, int64_t begin, int64_t end) {
    const auto kernel = kernels().linear.quantize;
    for (int64_t g = begin; g < end; ++g)
        kernel(x + g * group_, group_, codes_.data() + g * group_, &scales_[g], &sums_[g]);
}

void QuantizedRows::quantize_group(int64_t row, int64_t index, const float* x) {
    const int64_t g = row * groups() + index;
    kernels().linear.quantize(x, group_, codes_.data() + g * group_, &scales_[g], &sums_[g]);
}

Rows QuantizedRows::view(const float* x) const {
    return {.cols = cols_,
            .group = group_,
            .x = x,
            .codes = codes_.data(),
            .scales = scales_.data(),
            .sums = sums_.data()};
}

void assign(Pool& pool, QuantizedRows& rows, const float* x, int64_t count, int64_t cols,
            int64_t group) {
    rows.reserve(count, cols, group);
    if (!group) return;
    const auto body = [&](int64_t begin, int64_t end, int) { rows.quantize(x, begin, end); };
    pool.parallel_for(count * rows.groups(), kGrainFloats / group, std::cref(body));
}

}  // namespace flashmoe
