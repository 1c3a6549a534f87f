#include "cpu/linear/activations.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

// Floats per turn of a worker; below that, waking the pool costs more than it saves.
constexpr int64_t kGrainFloats = 16384;

// The sum is integer and below 2^15 in magnitude, and sum / scale off by less than 2^-22 of it: the
// rounding is exact. Without codes (scale zero, infinite or NaN) the quotient is NaN.
int32_t code_offset(float scale, float sum) {
    const float codes = sum / scale;
    return std::isnan(codes) ? 0 : -128 * static_cast<int32_t>(std::lrint(codes));
}

}  // namespace

void QuantizedRows::reserve(int64_t count, int64_t cols, int64_t group) {
    count_ = count;
    cols_ = cols;
    group_ = group;
    if (!group) return;
    grow(codes_, count * cols);
    grow(scales_, count * groups());
    grow(sums_, count * groups());
    grow(offsets_, count * groups());
}

void QuantizedRows::quantize(const float* x, int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) store_group(x + g * group_, g);
}

void QuantizedRows::quantize_group(int64_t row, int64_t index, const float* x) {
    store_group(x, row * groups() + index);
}

void QuantizedRows::store_group(const float* x, int64_t index) {
    float &scale = scales_[index], &sum = sums_[index];
    kernels().linear.quantize(x, group_, codes_.data() + index * group_, &scale, &sum);
    offsets_[index] = code_offset(scale, sum);
}

void QuantizedRows::gather(const Rows& rows, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
        const int64_t row = rows.at(j), from = row * groups(), to = j * groups();
        std::copy_n(rows.codes + row * cols_, cols_, codes_.data() + j * cols_);
        std::copy_n(rows.scales + from, groups(), scales_.data() + to);
        std::copy_n(rows.sums + from, groups(), sums_.data() + to);
        std::copy_n(rows.offsets + from, groups(), offsets_.data() + to);
    }
}

Rows QuantizedRows::view(const float* x) const {
    return {.cols = cols_,
            .group = group_,
            .x = x,
            .codes = codes_.data(),
            .scales = scales_.data(),
            .sums = sums_.data(),
            .offsets = offsets_.data()};
}

void assign(Pool& pool, QuantizedRows& rows, const float* x, int64_t count, int64_t cols,
            int64_t group) {
    rows.reserve(count, cols, group);
    if (!group) return;
    const auto body = [&](int64_t begin, int64_t end, int) { rows.quantize(x, begin, end); };
    pool.parallel_for(count * rows.groups(), kGrainFloats / group, std::cref(body));
}

}  // namespace flashmoe
