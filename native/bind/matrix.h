// The Python-side weight matrix: a checked view of bytes that it keeps alive.
#pragma once

#include <string>

#include "bind/bind.h"
#include "cpu/codec/matrix.h"

namespace flashmoe {

struct Matrix {
    MatrixView view;
    Array<const uint8_t, 1> data;
};

inline const char* format_name(Format format) {
    constexpr const char* kNames[kInterleavedFormats] = {"bf16", "q8", "q4",  "mxfp4",
                                                         "q2",   "q3", "q4n", "q5"};
    return is_block_format(format) ? block_format(format).name : kNames[static_cast<int>(format)];
}

// Throws for a name that no format has.
inline Format named_format(const char* op, const std::string& name) {
    for (int i = 0; i < kInterleavedFormats + kBlockFormatCount; ++i)
        if (name == format_name(static_cast<Format>(i))) return static_cast<Format>(i);
    expect(false, op, "unknown format '" + name + "'");
    return Format::bf16;
}

// A view without data. Throws unless format, group, rows and cols fit together.
inline MatrixView checked_shape(const char* op, const std::string& format, int64_t group,
                                int64_t rows, int64_t cols) {
    constexpr int64_t kLimit = int64_t{1} << 31;  // sizes in bytes stay far from overflow
    const Format kind = named_format(op, format);
    const bool block = is_block_format(kind), plain = kind == Format::bf16 || block;
    const bool fixed = plain || kind == Format::mxfp4;
    const int64_t only = plain ? 0 : 32;
    expect(fixed ? group == only : group == 32 || group == 64 || group == 128, op,
           format + " group: expected " + (fixed ? std::to_string(only) : "32, 64 or 128") +
               ", got " + std::to_string(group));
    expect(rows > 0 && rows < kLimit, op,
           "rows: expected 1 or more, below 2^31, got " + std::to_string(rows));
    const int64_t step = block ? block_format(kind).cols : plain ? 2 : group;
    expect(cols > 0 && cols < kLimit && cols % step == 0, op,
           "cols: expected a positive multiple of " + std::to_string(step) + ", got " +
               std::to_string(cols));
    return {kind, group, rows, cols, nullptr};
}

}  // namespace flashmoe
