#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "cpu/codec/codec.h"

namespace flashmoe {
namespace {

// Eight rows of one group.
using Group = float[kBlockRows][kMaxGroup];

uint16_t to_bf16(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float from_f16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 0)
        return std::bit_cast<float>(
            sign | std::bit_cast<uint32_t>(std::ldexp(static_cast<float>(mantissa), -24)));
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

// Bits of the largest magnitude whose stored form is finite.
uint32_t largest_encodable(Format format) {
    switch (format) {
        case Format::q8:
            return 0x7F7FFFFF;  // any finite float
        case Format::bf16:
            return 0x7F7F7FFF;  // above, rounding gives infinity
        case Format::q4:
            return 0x7E800000;  // 2^126: max - min must be finite
    }
    return 0;
}

void encode_bf16(const Group& w, int64_t cols, uint8_t* out) {
    for (int64_t c = 0; c < cols; c += 2)
        for (const auto& row : w)
            for (int64_t j = 0; j < 2; ++j, out += 2) {
                const uint16_t bits = to_bf16(row[c + j]);
                std::memcpy(out, &bits, 2);
            }
}

void encode_q8_row(const float* w, int64_t group, int64_t row, uint8_t* out) {
    float amax = 0;
    for (int64_t c = 0; c < group; ++c) amax = std::max(amax, std::abs(w[c]));
    const float scale = amax / 127.0f, divisor = scale == 0 ? 1.0f : scale;
    for (int64_t c = 0; c < group; ++c) {
        const float code = std::clamp(std::nearbyint(w[c] / divisor), -127.0f, 127.0f);
        out[c / 4 * 32 + 4 * row + c % 4] = static_cast<uint8_t>(static_cast<int8_t>(code));
    }
    std::memcpy(out + group * kBlockRows + 4 * row, &scale, 4);
}

void encode_q4_row(const float* w, int64_t group, int64_t row, uint8_t* out) {
    const auto [low, high] = std::minmax_element(w, w + group);
    const uint16_t bias_bits = to_bf16(*low + 0.0f), scale_bits = to_bf16((*high - *low) / 15.0f);
    const float bias = from_bf16(bias_bits), scale = from_bf16(scale_bits);
    uint8_t codes[kMaxGroup] = {};
    for (int64_t c = 0; c < group && scale != 0; ++c)
        codes[c] =
            static_cast<uint8_t>(std::clamp(std::nearbyint((w[c] - bias) / scale), 0.0f, 15.0f));
    for (int64_t c = 0; c < group; c += 8)
        for (int64_t j = 0; j < 4; ++j)
            out[c * 4 + 4 * row + j] = static_cast<uint8_t>(codes[c + j] | (codes[c + 4 + j] << 4));
    uint8_t* tail = out + group * kBlockRows / 2 + 2 * row;
    std::memcpy(tail, &scale_bits, 2);
    std::memcpy(tail + 16, &bias_bits, 2);
}

void encode_group(const MatrixView& shape, const Group& w, int64_t cols, uint8_t* out) {
    if (shape.format == Format::bf16) return encode_bf16(w, cols, out);
    const auto encode_row = shape.format == Format::q8 ? encode_q8_row : encode_q4_row;
    for (int64_t r = 0; r < kBlockRows; ++r) encode_row(w[r], cols, r, out);
}

void encode_block(const MatrixView& shape, const Source& source, int64_t block, uint8_t* out) {
    const int64_t width = shape.group ? shape.group : kMaxGroup;
    Group w;
    for (int64_t first = 0; first < shape.cols; first += width) {
        const int64_t cols = std::min(width, shape.cols - first);
        for (int64_t r = 0; r < kBlockRows; ++r) {
            const int64_t row = block * kBlockRows + r;
            if (row < shape.rows)
                source.load(row * shape.cols + first, cols, w[r]);
            else
                std::fill_n(w[r], cols, 0.0f);
        }
        encode_group(shape, w, cols, out);
        out += shape.row_bytes(cols) * kBlockRows;
    }
}

int64_t first_above(const Source& source, int64_t begin, int64_t end, uint32_t limit) {
    for (int64_t i = begin; i < end; ++i)
        if ((std::bit_cast<uint32_t>(source.at(i)) & 0x7FFFFFFF) > limit) return i;
    return std::numeric_limits<int64_t>::max();
}

}  // namespace

float Source::at(int64_t index) const {
    float wide;
    uint16_t half;
    if (type == SourceType::f32) {
        std::memcpy(&wide, data + 4 * index, 4);
        return wide;
    }
    std::memcpy(&half, data + 2 * index, 2);
    return type == SourceType::bf16 ? from_bf16(half) : from_f16(half);
}

void Source::load(int64_t index, int64_t n, float* to) const {
    for (int64_t i = 0; i < n; ++i) to[i] = at(index + i);
}

int64_t first_unencodable(Pool& pool, const MatrixView& shape, const Source& source) {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    const uint32_t limit = largest_encodable(shape.format);
    std::atomic<int64_t> first{kNone};
    const auto body = [&](int64_t begin, int64_t end, int) {
        const int64_t found = first_above(source, begin, end, limit);
        for (int64_t seen = first.load(); found < seen;)
            if (first.compare_exchange_weak(seen, found)) break;
    };
    pool.parallel_for(shape.rows * shape.cols, 1 << 18, std::cref(body));
    return first.load() == kNone ? -1 : first.load();
}

void encode(Pool& pool, const MatrixView& shape, const Source& source, uint8_t* out) {
    const auto body = [&](int64_t begin, int64_t end, int) {
        for (int64_t block = begin; block < end; ++block)
            encode_block(shape, source, block, out + block * shape.block_bytes());
    };
    pool.parallel_for(shape.blocks(), 8, std::cref(body));
}

}  // namespace flashmoe
