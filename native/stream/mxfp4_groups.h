// Groups of the stored form of mxfp4 (src/flashmoe/quant/mxfp4.py), as they come from elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

constexpr size_t kMxfp4GroupBytes = 136;  // 4 units of 8 rows x 4 bytes, 8 scales

// Gives every group the scale that the encoder would choose, its weights being the same: its
// largest code is 4 or 6, unless the scale is 0. False where a weight is not finite as bf16.
bool settle_mxfp4(uint8_t* blob, size_t groups);

}  // namespace flashmoe
