#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>

#include "cpu/codec/codec.h"
#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
constexpr int64_t kScanWeights = 1024;

// Eight rows of one group.
using Group = float[kBlockRows][kMaxGroup];

// Bits of the largest magnitude whose stored form is finite.
uint32_t largest_encodable(Format format) {
    switch (format) {
        case Format::q8:
        case Format::mxfp4:
            return 0x7F7FFFFF;  // any finite float
        case Format::bf16:
            return 0x7F7F7FFF;  // above, rounding gives infinity
        case Format::q4:
            return 0x7E800000;  // 2^126: max - min must be finite
        case Format::q2:
        case Format::q3:
        case Format::q4n:
        case Format::q5:
            return 0x43000000;  // 128: the scale byte ends at 15
        default:
            break;  // block formats are copied
    }
    return 0;
}

void load_rows(const MatrixView& shape, const Source& source, int64_t block, int64_t first,
               int64_t cols, Group& w) {
    for (int64_t r = 0; r < kBlockRows; ++r) {
        const int64_t row = block * kBlockRows + r;
        if (row < shape.rows)
            source.load(row * shape.cols + first, cols, w[r]);
        else
            std::fill_n(w[r], cols, 0.0f);
    }
}

void encode_bf16(const Group& w, int64_t cols, uint8_t* out) {
    for (int64_t c = 0; c < cols; c += 2)
        for (const auto& row : w) {
            const uint16_t unit[2] = {to_bf16(row[c]), to_bf16(row[c + 1])};
            std::memcpy(out, unit, 4);
            out += 4;
        }
}

void encode_quantized(const MatrixView& shape, const Group& w, uint8_t* out) {
    const auto encode_row = kernels().codec.encode(shape.format);
    const int64_t tail_bytes = shape.tail_bytes();
    uint8_t* tail = out + kBlockRows * (shape.row_bytes(shape.group) - tail_bytes);
    // Of q4's four bytes, two are the scale; the biases of all rows follow the scales.
    const int64_t step = shape.format == Format::q4 ? 2 : tail_bytes;
    for (int64_t r = 0; r < kBlockRows; ++r)
        encode_row(w[r], shape.group, out + 4 * r, tail + step * r);
}

void encode_block(const MatrixView& shape, const Source& source, int64_t block, uint8_t* out) {
    const int64_t width = shape.group ? shape.group : kMaxGroup;
    Group w;
    for (int64_t first = 0; first < shape.cols; first += width) {
        const int64_t cols = std::min(width, shape.cols - first);
        load_rows(shape, source, block, first, cols, w);
        if (shape.group)
            encode_quantized(shape, w, out);
        else
            encode_bf16(w, cols, out);
        out += kBlockRows * shape.row_bytes(cols);
    }
}

// Index of the first of n weights above limit, or kNone.
int64_t first_above(const Source& source, int64_t index, int64_t n, uint32_t limit) {
    float w[kScanWeights];
    source.load(index, n, w);
    const auto largest = kernels().codec.largest;
    if (largest(w, n) <= limit) return kNone;
    int64_t i = 0;
    while (largest(w + i, 1) <= limit) ++i;
    return index + i;
}

void lower_to(std::atomic<int64_t>& least, int64_t value) {
    for (int64_t seen = least.load(); value < seen;)
        if (least.compare_exchange_weak(seen, value)) return;
}

}  // namespace

void Source::load(int64_t index, int64_t n, float* to) const {
    const auto& table = kernels().codec;
    const uint8_t* bytes = data + index * item_bytes();
    if (type == SourceType::f32)
        std::memcpy(to, bytes, static_cast<size_t>(4 * n));
    else
        (type == SourceType::bf16 ? table.widen_bf16 : table.widen_f16)(bytes, n, to);
}

int64_t first_unencodable(Pool& pool, const MatrixView& shape, const Source& source) {
    const int64_t weights = shape.rows * shape.cols;
    const uint32_t limit = largest_encodable(shape.format);
    std::atomic<int64_t> first{kNone};
    const auto body = [&](int64_t begin, int64_t end, int) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t index = piece * kScanWeights;
            const int64_t n = std::min(kScanWeights, weights - index);
            lower_to(first, first_above(source, index, n, limit));
        }
    };
    pool.parallel_for((weights + kScanWeights - 1) / kScanWeights, 256, std::cref(body));
    return first.load() == kNone ? -1 : first.load();
}

void encode(Pool& pool, const MatrixView& shape, const Source& source, uint8_t* out) {
    const auto body = [&](int64_t begin, int64_t end, int) {
        for (int64_t block = begin; block < end; ++block)
            encode_block(shape, source, block, out + block * shape.block_bytes());
    };
    pool.parallel_for(shape.blocks(), 4, std::cref(body));
}

}  // namespace flashmoe
