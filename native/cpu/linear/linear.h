// Matrix products of stored weights and activations: kernels per instruction set, and the drivers
// that split a product over the pool. A result row is bit-identical whatever other rows are in the
// call and whatever the thread count: each output element has one fixed order of arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/codec/matrix.h"
#include "flashmoe/pool.h"

namespace flashmoe {

// Activation rows as the kernels read them. bf16 weights and block formats use x; q8, q4 and mxfp4
// the int8 codes, with one scale and one scale * sum(codes) per group of the matrix's group size.
struct Rows {
    int64_t cols = 0;
    int64_t group = 0;  // 0: x only
    const float* x = nullptr;
    const int8_t* codes = nullptr;
    const float* scales = nullptr;
    const float* sums = nullptr;
    const int32_t* offsets = nullptr;  // -128 * sum(codes) per group
    const int32_t* index = nullptr;    // row i of a call is stored row index[i]; null: row i

    int64_t at(int64_t i) const { return index ? index[i] : i; }
};

struct LinearKernels {
    // y[i * 8 + r] = row r of the block . activation row first + i, for i in [0, count).
    // bytes: one 8-row block of a matrix with rows.cols columns.
    using Dot = void (*)(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first,
                         int64_t count, float* y);
    Dot dot_bf16;
    Dot dot_q8;
    Dot dot_q4;
    Dot dot_mxfp4;  // see cpu/mxfp4
    Dot dot_q2;     // see cpu/codebook
    Dot dot_q3;
    Dot dot_q4n;
    Dot dot_q5;
    // out[cols] = the weights of one stored row of a block format.
    using DecodeRow = void (*)(const uint8_t* row, int64_t cols, float* out);
    struct Block {
        Dot dot;
        DecodeRow decode_row;
    };
    Block blocks[kBlockFormatCount];  // see cpu/blocks
    // The same for two adjacent blocks, the second one's results at y + count * 8; null: not
    // faster.
    Dot pair_bf16 = nullptr;
    Dot pair_q8 = nullptr;
    Dot pair_q4 = nullptr;
    Dot pair_mxfp4 = nullptr;
    Dot pair_q2 = nullptr;
    Dot pair_q3 = nullptr;
    Dot pair_q4n = nullptr;
    Dot pair_q5 = nullptr;
    // From that many tokens on the pair kernels are faster on rows without an index; 0: they are
    // not.
    int64_t run_tokens = 0;
    // One group to int8: scale = max|x| / 127, sum = scale * sum(codes). A group so small that
    // 127 / max|x| overflows counts as zero; NaN or infinity in x makes scale NaN or infinite.
    void (*quantize)(const float* x, int64_t group, int8_t* codes, float* scale, float* sum);
    // out[i] = silu(gate[i]) * up[i]; n is a multiple of 8. out may be gate or up.
    void (*silu_mul)(const float* gate, const float* up, float* out, int64_t n);

    Dot dot(Format format) const {
        switch (format) {
            case Format::bf16:
                return dot_bf16;
            case Format::q8:
                return dot_q8;
            case Format::q4:
                return dot_q4;
            case Format::mxfp4:
                return dot_mxfp4;
            case Format::q2:
                return dot_q2;
            case Format::q3:
                return dot_q3;
            case Format::q4n:
                return dot_q4n;
            case Format::q5:
                return dot_q5;
            default:
                return blocks[block_index(format)].dot;
        }
    }
    Dot pair(Format format) const {
        switch (format) {
            case Format::bf16:
                return pair_bf16;
            case Format::q8:
                return pair_q8;
            case Format::q4:
                return pair_q4;
            case Format::mxfp4:
                return pair_mxfp4;
            case Format::q2:
                return pair_q2;
            case Format::q3:
                return pair_q3;
            case Format::q4n:
                return pair_q4n;
            case Format::q5:
                return pair_q5;
            default:
                return nullptr;
        }
    }
    // y[(b * count + i) * 8 + r] = row r of the b-th of 1 or 2 blocks . activation row first + i.
    // w gives format and columns; bytes is the first block.
    void multiply(const MatrixView& w, const uint8_t* bytes, int64_t blocks, const Rows& rows,
                  int64_t first, int64_t count, float* y) const;
};

void register_linear_scalar(LinearKernels& table);
void register_linear_avx2(LinearKernels& table);
void register_linear_avx512(LinearKernels& table);
void register_linear_amx(LinearKernels& table);
void register_linear_neon(LinearKernels& table);

// A token chunk keeps its activations in the L2 cache while the weight blocks pass by.
constexpr int64_t kTokenChunk = 64;
// Blocks of one kernel call at most.
constexpr int64_t kPairBlocks = 2;

// Items per turn of a worker, when an item multiplies item_bytes of weights by `tokens` tokens:
// about 256 KiB times tokens, but at least 4 turns for each thread. All of them when 64 KiB is all
// the work: waking the pool would cost more.
int64_t weight_grain(int64_t items, int64_t item_bytes, int64_t tokens, int threads);

// outs[i][t] (+)= matrices[i] . row t of rows, for t in [0, count); outs[i] is [count, rows_i].
void linear(Pool& pool, const Rows& rows, int64_t count, const std::vector<MatrixView>& matrices,
            const std::vector<float*>& outs, bool accumulate);

}  // namespace flashmoe
