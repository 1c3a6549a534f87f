// A weight matrix as it is stored: blocks of 8 rows, back to back; within a block the rows are
// interleaved in units of 4 bytes, or follow each other (block formats, cpu/blocks/formats.h).
// The byte layout of each format is defined by its NumPy twin in src/flashmoe/quant.
#pragma once

#include <cstdint>

#include "cpu/blocks/formats.h"

namespace flashmoe {

constexpr int64_t kBlockRows = 8;
constexpr int64_t kMaxGroup = 128;

// Interleaved formats, then the block formats in the order of their table.
#define FLASHMOE_NAME(name, cols, bytes) name,
enum class Format { bf16, q8, q4, mxfp4, q2, q3, q4n, q5, FLASHMOE_BLOCK_FORMATS(FLASHMOE_NAME) };
#undef FLASHMOE_NAME

constexpr int kInterleavedFormats = 8;

constexpr int block_index(Format format) { return static_cast<int>(format) - kInterleavedFormats; }
constexpr bool is_block_format(Format format) { return block_index(format) >= 0; }
constexpr BlockFormat block_format(Format format) { return kBlockFormats[block_index(format)]; }

struct MatrixView {
    Format format;
    int64_t group;  // columns per scale of q8, q4, mxfp4; 0: activations stay floats
    int64_t rows;
    int64_t cols;
    const uint8_t* data;

    int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
    // Stored bytes of n columns of one row; n is a multiple of group, or of a run's columns.
    int64_t row_bytes(int64_t n) const {
        if (format == Format::bf16) return 2 * n;
        if (is_block_format(format)) {
            const BlockFormat run = block_format(format);
            return n / run.cols * run.bytes;
        }
        const int64_t codes = group * code_bits() / 8;
        return n / group * (codes + tail_bytes());
    }
    // Stored bytes of scale (and bias) of one row's part of a group.
    int64_t tail_bytes() const { return format == Format::q8 || format == Format::q4 ? 4 : 1; }
    // Of the formats with groups.
    int64_t code_bits() const {
        if (format == Format::q8) return 8;
        if (format == Format::q5) return 5;
        return format == Format::q2 ? 2 : format == Format::q3 ? 3 : 4;
    }
    int64_t block_bytes() const { return kBlockRows * row_bytes(cols); }
    int64_t nbytes() const { return blocks() * block_bytes(); }
    const uint8_t* block(int64_t index) const { return data + index * block_bytes(); }
};

}  // namespace flashmoe
