// Products with q2 and q3 weights: codes of 2 or 3 bits that index a fixed table of levels, one
// 8-bit scale per row and group. A part of LinearKernels.
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

// What makes the levels unsigned, as maddubs and dpbusd want them.
template <int kBits>
constexpr int32_t kShift = kBits == 2 ? 30 : 35;

// Bytes of 8 rows of 32 columns: two units of low bits, for q3 a third one of high bits.
template <int kBits>
constexpr int64_t kChunkBytes = 32 * kBits;

// Scale byte s: 5 bits of exponent, 3 of mantissa, 2^-28 to 15.
constexpr uint32_t kScaleBase = 99 << 3;

inline float codebook_scale(uint8_t s) { return std::bit_cast<float>((s + kScaleBase) << 20); }

// The code of column c, below 32, of a chunk; unit: the row's 4 bytes of its first unit.
template <int kBits>
int codebook_code(const uint8_t* unit, int64_t c) {
    const int low = unit[c / 16 * 32 + c % 4] >> (c % 16 / 4 * 2) & 3;
    return kBits == 2 ? low : low | (unit[64 + c % 4] >> (c / 4) & 1) << 2;
}

void register_codebook_scalar(LinearKernels& table);
void register_codebook_avx2(LinearKernels& table);
void register_codebook_avx512(LinearKernels& table);

}  // namespace flashmoe
