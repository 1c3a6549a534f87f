// Activation rows and their int8 form, in buffers that only grow.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/linear/linear.h"
#include "flashmoe/pool.h"

namespace flashmoe {

class QuantizedRows {
  public:
    // Makes room for count rows of cols columns; group 0: no codes. Contents are undefined.
    void reserve(int64_t count, int64_t cols, int64_t group);

    // Quantises groups [begin, end), counted through all rows, of x [count, cols].
    void quantize(const float* x, int64_t begin, int64_t end);

    // Quantises one group of one row.
    void quantize_group(int64_t row, int64_t index, const float* x);

    // Copies codes, scales and sums of rows.at(j), for j in [begin, end), to row j.
    void gather(const Rows& rows, int64_t begin, int64_t end);

    int64_t count() const { return count_; }
    int64_t cols() const { return cols_; }
    int64_t group() const { return group_; }
    int64_t groups() const { return group_ ? cols_ / group_ : 0; }

    // Bytes of the buffers.
    int64_t nbytes() const {
        return static_cast<int64_t>(codes_.size() +
                                    sizeof(float) * (scales_.size() + sums_.size()));
    }

    // Kernel view; x is what bf16 weights will read.
    Rows view(const float* x) const;

  private:
    void store_group(const float* x, int64_t index);

    int64_t count_ = 0, cols_ = 0, group_ = 0;
    std::vector<int8_t> codes_;
    std::vector<float> scales_, sums_;
    std::vector<int32_t> offsets_;
};

// Quantises x [count, cols] into rows: over the pool when there is enough of it.
void assign(Pool& pool, QuantizedRows& rows, const float* x, int64_t count, int64_t cols,
            int64_t group);

// Makes v hold at least n elements; never shrinks, so that a reused buffer is not cleared again.
template <typename T>
void grow(std::vector<T>& v, int64_t n) {
    if (v.size() < static_cast<size_t>(n)) v.resize(static_cast<size_t>(n));
}

}  // namespace flashmoe
