// How much work is worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace flashmoe {

// Items per piece for cheap loops over floats: below 16 Ki of them waking a worker costs more than
// it saves.
inline int64_t cheap_grain(int64_t floats_per_item) {
    return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, floats_per_item));
}

}  // namespace flashmoe
