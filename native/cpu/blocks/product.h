// The product of any block format, for any instruction set: a tile of 8 rows is decoded to floats
// once for all tokens of the call, then multiplied with them.
//
// Lanes gives the vector type: kLanes floats per Vector, kRows x kTokens accumulators that fit the
// registers beside their operands, zero(), load(), fma(a, b, sum) and sums(accumulators of 8 rows,
// y), which adds up the lanes of each. A product runs through its columns in ascending order, one
// vector after the other into the same accumulator, whatever the tile.
#pragma once

#include <algorithm>

#include "cpu/blocks/gguf_iq4.h"
#include "cpu/blocks/gguf_k.h"
#include "cpu/blocks/gguf_legacy.h"
#include "cpu/blocks/nvfp4.h"
#include "cpu/linear/linear.h"

namespace flashmoe {
namespace {

// Columns of a tile: 8 rows of floats and the same part of some tokens stay in the L1 cache.
constexpr int64_t kTileCols = 256;

template <Format format>
void decode_runs(const uint8_t* bytes, int64_t cols, float* out) {
    constexpr BlockFormat kShape = block_format(format);
    static_assert(kTileCols % kShape.cols == 0 && kShape.cols % 16 == 0);
    for (int64_t c = 0; c < cols; c += kShape.cols, bytes += kShape.bytes)
        Decoder<format>::run(bytes, out + c);
}

// acc[t][row + r] += w[row + r] . x[t] over n columns.
template <class Lanes, int kRows, int kTokens>
void multiply_rows(const float (&w)[kBlockRows][kTileCols], int64_t row, const float* const* x,
                   int64_t n, typename Lanes::Vector (*acc)[kBlockRows]) {
    typename Lanes::Vector sum[kTokens][kRows];
    for (int t = 0; t < kTokens; ++t)
        for (int r = 0; r < kRows; ++r) sum[t][r] = acc[t][row + r];
    for (int64_t c = 0; c < n; c += Lanes::kLanes)
        for (int r = 0; r < kRows; ++r) {
            const auto weights = Lanes::load(w[row + r] + c);
            for (int t = 0; t < kTokens; ++t)
                sum[t][r] = Lanes::fma(weights, Lanes::load(x[t] + c), sum[t][r]);
        }
    for (int t = 0; t < kTokens; ++t)
        for (int r = 0; r < kRows; ++r) acc[t][row + r] = sum[t][r];
}

// The same for all 8 rows and all tokens; moves each x on by n.
template <class Lanes>
void multiply_tile(const float (&w)[kBlockRows][kTileCols], const float** x, int64_t count,
                   int64_t n, typename Lanes::Vector (*acc)[kBlockRows]) {
    int64_t t = 0;
    for (; t + Lanes::kTokens <= count; t += Lanes::kTokens)
        for (int64_t r = 0; r < kBlockRows; r += Lanes::kRows)
            multiply_rows<Lanes, Lanes::kRows, Lanes::kTokens>(w, r, x + t, n, acc + t);
    for (; t < count; ++t) multiply_rows<Lanes, kBlockRows, 1>(w, 0, x + t, n, acc + t);
    for (t = 0; t < count; ++t) x[t] += n;
}

template <class Lanes, Format format>
void dot_block(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
               float* y) {
    const float* x[kTokenChunk];
    typename Lanes::Vector acc[kTokenChunk][kBlockRows];
    for (int64_t t = 0; t < count; ++t) {
        x[t] = rows.x + rows.at(first + t) * rows.cols;
        for (auto& sum : acc[t]) sum = Lanes::zero();
    }
    constexpr BlockFormat kShape = block_format(format);
    const int64_t row_bytes = rows.cols / kShape.cols * kShape.bytes;
    alignas(64) float w[kBlockRows][kTileCols];
    for (int64_t c = 0; c < rows.cols; c += kTileCols) {
        const int64_t n = std::min(kTileCols, rows.cols - c);
        const uint8_t* from = bytes + c / kShape.cols * kShape.bytes;
        for (int64_t r = 0; r < kBlockRows; ++r) decode_runs<format>(from + r * row_bytes, n, w[r]);
        multiply_tile<Lanes>(w, x, count, n, acc);
    }
    for (int64_t t = 0; t < count; ++t) Lanes::sums(acc[t], y + t * kBlockRows);
}

template <class Lanes>
void register_blocks(LinearKernels& table) {
#define FLASHMOE_REGISTER(name, cols, bytes)                                   \
    table.blocks[block_index(Format::name)] = {dot_block<Lanes, Format::name>, \
                                               decode_runs<Format::name>};
    FLASHMOE_BLOCK_FORMATS(FLASHMOE_REGISTER)
#undef FLASHMOE_REGISTER
}

}  // namespace
}  // namespace flashmoe
