// Products with q2, q3, q4n and q5 weights: codes of 2 to 5 bits that index a fixed table of
// levels, one 8-bit scale per row and group. A part of LinearKernels.
#pragma once

#include <bit>
#include <cstdint>

namespace flashmoe {

struct LinearKernels;

// The levels of src/flashmoe/quant/codebook.py.
template <int kBits>
constexpr int8_t kLevels[1 << kBits];
template <>
inline constexpr int8_t kLevels<2>[4] = {-30, -9, 9, 30};
template <>
inline constexpr int8_t kLevels<3>[8] = {-35, -22, -12, -4, 4, 12, 22, 35};
template <>
inline constexpr int8_t kLevels<4>[16] = {-60, -46, -36, -28, -21, -15, -9, -3,
                                          3,   9,   15,  21,  28,  36,  46, 60};
template <>
inline constexpr int8_t kLevels<5>[32] = {-62, -55, -49, -44, -40, -36, -32, -28, -25, -21, -18,
                                          -15, -11, -8,  -5,  -2,  2,   5,   8,   11,  15,  18,
                                          21,  25,  28,  32,  36,  40,  44,  49,  55,  62};

// The scale of a plain encoding over the largest magnitude.
template <int kBits>
constexpr float kPlainRatio = kBits == 2   ? 0.021f
                              : kBits == 3 ? 0.0257f
                              : kBits == 4 ? 0.0158f
                                           : 0.0161f;

// What makes the levels unsigned, as maddubs and dpbusd want them.
template <int kBits>
constexpr int32_t kShift = -kLevels<kBits>[0];

// Bits of a code that lie together, and units of them; a bit above them is in a unit of its own.
template <int kBits>
constexpr int kCodebookLow = kBits / 2 * 2;

// Bytes of 8 rows of 32 columns.
template <int kBits>
constexpr int64_t kChunkBytes = 32 * kBits;

// Scale byte s: 5 bits of exponent, 3 of mantissa, 2^-28 to 15.
constexpr uint32_t kScaleBase = 99 << 3;

inline float codebook_scale(uint8_t s) { return std::bit_cast<float>((s + kScaleBase) << 20); }

// The code of column c, below 32, of a chunk; unit: the row's 4 bytes of its first unit.
template <int kBits>
int codebook_code(const uint8_t* unit, int64_t c) {
    constexpr int kLow = kCodebookLow<kBits>, kCols = 32 / kLow;
    const int low = unit[c / kCols * 32 + c % 4] >> (c % kCols / 4 * kLow) & ((1 << kLow) - 1);
    return kBits == kLow ? low : low | (unit[32 * kLow + c % 4] >> (c / 4) & 1) << kLow;
}

void register_codebook_scalar(LinearKernels& table);
void register_codebook_avx2(LinearKernels& table);
void register_codebook_avx512(LinearKernels& table);

}  // namespace flashmoe
