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
    return format == Format::bf16 ? "bf16" : format == Format::q8 ? "q8" : "q4";
}

// A view without data. Throws unless format, group, rows and cols fit together.
inline MatrixView checked_shape(const char* op, const std::string& format, int64_t group,
                                int64_t rows, int64_t cols) {
    constexpr int64_t kLimit = int64_t{1} << 31;  // sizes in bytes stay far from overflow
    const bool plain = format == "bf16";
    expect(plain || format == "q8" || format == "q4", op, "unknown format '" + format + "'");
    expect(plain ? group == 0 : group == 32 || group == 64 || group == 128, op,
           format + " group: expected " + (plain ? "0" : "32, 64 or 128") + ", got " +
               std::to_string(group));
    expect(rows > 0 && rows < kLimit, op,
           "rows: expected 1 or more, below 2^31, got " + std::to_string(rows));
    const int64_t step = plain ? 2 : group;
    expect(cols > 0 && cols < kLimit && cols % step == 0, op,
           "cols: expected a positive multiple of " + std::to_string(step) + ", got " +
               std::to_string(cols));
    return {plain            ? Format::bf16
            : format == "q8" ? Format::q8
                             : Format::q4,
            group, rows, cols, nullptr};
}

}  // namespace flashmoe
