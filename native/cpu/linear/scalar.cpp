#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/linear/linear.h"

namespace flashmoe {
namespace {

template <typename T>
T load(const uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

float bf16(const uint8_t* bytes) {
    return std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(bytes)) << 16);
}

void dot_bf16(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
              float* y) {
    for (int64_t i = 0; i < count; ++i, y += kBlockRows) {
        const float* x = rows.x + rows.at(first + i) * rows.cols;
        for (int64_t r = 0; r < kBlockRows; ++r) {
            float even = 0, odd = 0;
            const uint8_t* unit = bytes + 4 * r;
            for (int64_t c = 0; c < rows.cols; c += 2, unit += 32) {
                even += bf16(unit) * x[c];
                odd += bf16(unit + 2) * x[c + 1];
            }
            y[r] = even + odd;
        }
    }
}

// Integer dot of one row's codes (every 32nd unit of 4 bytes) with one group of activations.
int32_t group_dot_q8(const uint8_t* unit, const int8_t* x, int64_t group) {
    int32_t dot = 0;
    for (int64_t c = 0; c < group; c += 4, unit += 32)
        for (int64_t j = 0; j < 4; ++j) dot += static_cast<int8_t>(unit[j]) * x[c + j];
    return dot;
}

int32_t group_dot_q4(const uint8_t* unit, const int8_t* x, int64_t group) {
    int32_t dot = 0;
    for (int64_t c = 0; c < group; c += 8, unit += 32)
        for (int64_t j = 0; j < 4; ++j)
            dot += (unit[j] & 15) * x[c + j] + (unit[j] >> 4) * x[c + 4 + j];
    return dot;
}

void dot_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const int64_t groups = rows.cols / group, code_bytes = group * kBlockRows;
    for (int64_t i = 0; i < count; ++i, y += kBlockRows) {
        const int64_t row = rows.at(first + i);
        const int8_t* codes = rows.codes + row * rows.cols;
        const float* scales = rows.scales + row * groups;
        for (int64_t r = 0; r < kBlockRows; ++r) {
            const uint8_t* at = bytes;
            y[r] = 0;
            for (int64_t g = 0; g < groups; ++g, at += code_bytes + 32) {
                const int32_t dot = group_dot_q8(at + 4 * r, codes + g * group, group);
                y[r] += load<float>(at + code_bytes + 4 * r) * scales[g] * static_cast<float>(dot);
            }
        }
    }
}

void dot_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const int64_t groups = rows.cols / group, code_bytes = group * kBlockRows / 2;
    for (int64_t i = 0; i < count; ++i, y += kBlockRows) {
        const int64_t row = rows.at(first + i);
        const int8_t* codes = rows.codes + row * rows.cols;
        const float* scales = rows.scales + row * groups;
        const float* sums = rows.sums + row * groups;
        for (int64_t r = 0; r < kBlockRows; ++r) {
            const uint8_t* at = bytes;
            y[r] = 0;
            for (int64_t g = 0; g < groups; ++g, at += code_bytes + 32) {
                const int32_t dot = group_dot_q4(at + 4 * r, codes + g * group, group);
                y[r] += bf16(at + code_bytes + 2 * r) * scales[g] * static_cast<float>(dot);
                y[r] += bf16(at + code_bytes + 16 + 2 * r) * sums[g];
            }
        }
    }
}

void quantize(const float* x, int64_t group, int8_t* codes, float* scale, float* sum) {
    uint32_t largest = 0;  // as an integer, so that NaN counts as the largest of all
    for (int64_t i = 0; i < group; ++i)
        largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFF);
    const float amax = std::bit_cast<float>(largest);
    const float inverse = 127.0f / amax;
    *scale = std::isinf(inverse) ? 0.0f : amax / 127.0f;
    if (!std::isfinite(inverse) || inverse == 0) {
        std::memset(codes, 0, static_cast<size_t>(group));
        *sum = *scale;
        return;
    }
    int32_t total = 0;
    for (int64_t i = 0; i < group; ++i) {
        codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
        total += codes[i];
    }
    *sum = *scale * static_cast<float>(total);
}

void silu_mul(const float* gate, const float* up, float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

}  // namespace

void register_linear_scalar(LinearKernels& table) {
    table.dot_bf16 = dot_bf16;
    table.dot_q8 = dot_q8;
    table.dot_q4 = dot_q4;
    table.quantize = quantize;
    table.silu_mul = silu_mul;
}

}  // namespace flashmoe
