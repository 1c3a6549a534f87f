#include <algorithm>
#include <bit>

#include "cpu/tile/tile.h"

namespace flashmoe {
namespace {

float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
    }
    const uint32_t widened = exponent == 31 ? 255 : exponent + 112;
    return std::bit_cast<float>(sign | widened << 23 | mantissa << 13);
}

uint16_t float_to_half(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds past 65504: inf
    if (magnitude < 0x38800000) {                       // below 2^-14: subnormal
        // At this offset the last bit of a float is worth 2^-24, so the addition rounds for us.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

void matmul(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    for (int64_t i = 0; i < size.m; ++i) {
        float* row = c.data + i * c.row;
        if (!accumulate) std::fill_n(row, size.n, 0.0f);
        for (int64_t p = 0; p < size.k; ++p) {
            const float factor = a.data[i * a.row + p * a.col];
            const float* source = b.data + p * b.row;
            for (int64_t j = 0; j < size.n; ++j) row[j] += factor * source[j];
        }
    }
}

float widen(float x) { return x; }
float widen(uint16_t x) { return half_to_float(x); }

template <typename T>
void transpose(const T* src, int64_t row, int64_t count, int64_t dim, float* dst, int64_t width) {
    for (int64_t d = 0; d < dim; ++d)
        for (int64_t j = 0; j < width; ++j)
            dst[d * width + j] = j < count ? widen(src[j * row + d]) : 0.0f;
}

void from_half(const uint16_t* src, int64_t n, float* dst) {
    for (int64_t i = 0; i < n; ++i) dst[i] = half_to_float(src[i]);
}

void to_half(const float* src, int64_t n, uint16_t* dst) {
    for (int64_t i = 0; i < n; ++i) dst[i] = float_to_half(src[i]);
}

}  // namespace

void register_tile_scalar(TileKernels& table) {
    table = {matmul, transpose<float>, transpose<uint16_t>, from_half, to_half};
}

}  // namespace flashmoe
