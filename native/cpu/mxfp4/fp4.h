// Numbers of the OCP Microscaling formats: 4-bit floats (E2M1) and power-of-two scales (E8M0).
#pragma once

#include <bit>
#include <cstdint>

namespace flashmoe {

// Twice the value of each code; code 8 is -0.
constexpr int8_t kFp4Halves[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(s - 127). s = 255 means NaN and is never stored.
inline float e8m0(uint8_t s) {
    return std::bit_cast<float>(s ? static_cast<uint32_t>(s) << 23 : 0x00400000u);
}

}  // namespace flashmoe
