#include "stream/mxfp4_groups.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace flashmoe {
namespace {

constexpr size_t kRows = 8;
constexpr size_t kUnits = 4;
constexpr size_t kCodeBytes = kUnits * kRows * 4;

using Words = std::array<uint32_t, kUnits * kRows>;  // [unit][row]

// 4 and 6 are the only magnitudes with their upper two bits set.
constexpr uint32_t largest_codes(uint32_t codes) { return codes & codes << 1 & 0x44444444u; }

// Codes of twice the weight, for magnitudes up to 3: 0 .5 1 1.5 2 3 -> 0 1 2 3 4 6. Signs stay.
constexpr uint8_t kTwice[8] = {0, 2, 4, 5, 6, 7, 0, 0};

uint32_t twice(uint32_t codes) {
    uint32_t result = 0;
    for (int shift = 0; shift < 32; shift += 4) {
        const uint32_t code = codes >> shift & 15;
        result |= (kTwice[code & 7] | (code & 8)) << shift;
    }
    return result;
}

// One row of a group -> whether its weights are finite.
bool settle_row(Words& words, size_t row, uint8_t& scale) {
    uint32_t largest = 0, any = 0;
    const auto look = [&] {
        largest = any = 0;
        for (size_t u = 0; u < kUnits; ++u) {
            const uint32_t codes = words[u * kRows + row];
            largest |= largest_codes(codes), any |= codes & 0x77777777u;
        }
    };
    look();
    if (scale == 255) return false;
    if (any == 0) return scale = 0, true;
    while (largest == 0 && scale > 0) {
        for (size_t u = 0; u < kUnits; ++u) words[u * kRows + row] = twice(words[u * kRows + row]);
        --scale, look();
    }
    return scale < 253;  // 4 * 2^(253 - 127) is 2^128
}

}  // namespace

bool settle_mxfp4(uint8_t* blob, size_t groups) {
    bool finite = true;
    for (size_t g = 0; g < groups; ++g, blob += kMxfp4GroupBytes) {
        Words words;
        uint8_t* const scales = blob + kCodeBytes;
        std::memcpy(words.data(), blob, sizeof words);
        uint32_t settled = ~0u, high = 0;
        for (size_t r = 0; r < kRows; ++r) {
            uint32_t largest = 0;
            for (size_t u = 0; u < kUnits; ++u) largest |= largest_codes(words[u * kRows + r]);
            settled &= largest != 0 ? ~0u : 0;
            high |= scales[r] >= 253;
        }
        if (settled && !high) continue;  // as good as always
        for (size_t r = 0; r < kRows; ++r) finite &= settle_row(words, r, scales[r]);
        std::memcpy(blob, words.data(), sizeof words);
    }
    return finite;
}

}  // namespace flashmoe
