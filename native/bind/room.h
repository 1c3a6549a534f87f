// Whether tokens fit a cache of keys and values.
#pragma once

#include <string>

#include "bind/bind.h"
#include "cpu/attention/attention.h"

namespace flashmoe {

// With a window the cache is a ring: it must hold what the first and the last token see.
inline void expect_room(const char* op, int64_t start, int64_t tokens, int64_t context,
                        int64_t window) {
    expect(window >= 0, op, "window: expected 0 or more, got " + std::to_string(window));
    const bool ring = window > 0;
    expect(!ring || context % kKeyBlock == 0, op,
           "context: expected a multiple of 64, got " + std::to_string(context));
    expect(!ring || tokens + window - 1 <= context, op,
           "tokens: expected at most " + std::to_string(context - window + 1) + ", got " +
               std::to_string(tokens));
    expect(start >= 0 && (ring || start + tokens <= context), op,
           "start: expected 0 to " + std::to_string(context - tokens) + ", got " +
               std::to_string(start));
}

}  // namespace flashmoe
