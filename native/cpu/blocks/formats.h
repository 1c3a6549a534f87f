// The block formats: those whose 8-row blocks are row-major. Byte order and decoding of each are
// defined by its NumPy twin in src/flashmoe/quant; docs/kernels.md says how to add one.
#pragma once

#include <cstdint>

#include "cpu/blocks/affine_formats.h"

// X(name, columns of a run, bytes of a run). A row is a sequence of runs, a block 8 rows one after
// the other. Columns are a multiple of 16.
#define FLASHMOE_BLOCK_FORMATS(X) \
    X(q4_0, 32, 18)               \
    X(q4_1, 32, 20)               \
    X(q5_0, 32, 22)               \
    X(q5_1, 32, 24)               \
    X(q8_0, 32, 34)               \
    X(q2_k, 256, 84)              \
    X(q3_k, 256, 110)             \
    X(q4_k, 256, 144)             \
    X(q5_k, 256, 176)             \
    X(q6_k, 256, 210)             \
    X(iq4_nl, 32, 18)             \
    X(iq4_xs, 256, 136)           \
    FLASHMOE_AFFINE_FORMATS(X)    \
    FLASHMOE_NVFP4_FORMATS(X)

namespace flashmoe {

struct BlockFormat {
    const char* name;
    int64_t cols, bytes;  // of a run
};

#define FLASHMOE_ROW(name, cols, bytes) {#name, cols, bytes},
constexpr BlockFormat kBlockFormats[] = {FLASHMOE_BLOCK_FORMATS(FLASHMOE_ROW)};
#undef FLASHMOE_ROW
constexpr int kBlockFormatCount = sizeof(kBlockFormats) / sizeof(kBlockFormats[0]);

}  // namespace flashmoe
