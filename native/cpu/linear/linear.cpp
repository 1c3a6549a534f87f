#include "cpu/linear/linear.h"

#include <algorithm>
#include <functional>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

// What the prefetch reads past the end of a turn must stay a small part of it.
constexpr int64_t kTurnBytes = 256 << 10;
constexpr int64_t kSerialBytes = 64 << 10;

int64_t pairs(const MatrixView& w) { return (w.blocks() + kPairBlocks - 1) / kPairBlocks; }

// Items are (token chunk, pair of 8-row blocks), pairs running through all matrices in turn.
struct LinearJob {
    const LinearKernels& table;
    const Rows& rows;
    int64_t count;
    const std::vector<MatrixView>& matrices;
    const std::vector<float*>& outs;
    bool accumulate;
    int64_t all_pairs;

    void operator()(int64_t begin, int64_t end, int) const {
        for (int64_t item = begin; item < end; ++item) {
            int64_t pair = item % all_pairs;
            size_t m = 0;
            for (; pair >= pairs(matrices[m]); ++m) pair -= pairs(matrices[m]);
            multiply(matrices[m], pair * kPairBlocks, item / all_pairs * kTokenChunk, outs[m]);
        }
    }

    void multiply(const MatrixView& w, int64_t block, int64_t first, float* out) const {
        float y[kPairBlocks * kTokenChunk * kBlockRows];
        const int64_t tokens = std::min(kTokenChunk, count - first);
        const int64_t blocks = std::min(kPairBlocks, w.blocks() - block);
        table.multiply(w, w.block(block), blocks, rows, first, tokens, y);
        for (int64_t b = 0; b < blocks; ++b)
            store_block(w, block + b, first, tokens, y + b * tokens * kBlockRows, out);
    }

    void store_block(const MatrixView& w, int64_t block, int64_t first, int64_t tokens,
                     const float* y, float* out) const {
        const int64_t row = block * kBlockRows, height = std::min(kBlockRows, w.rows - row);
        for (int64_t t = 0; t < tokens; ++t)
            store(y + t * kBlockRows, out + (first + t) * w.rows + row, height);
    }

    void store(const float* y, float* out, int64_t height) const {
        for (int64_t r = 0; r < height; ++r) out[r] = accumulate ? out[r] + y[r] : y[r];
    }
};

}  // namespace

void LinearKernels::multiply(const MatrixView& w, const uint8_t* bytes, int64_t blocks,
                             const Rows& rows, int64_t first, int64_t count, float* y) const {
    if (const Dot two = pair(w.format); two && blocks == kPairBlocks)
        return two(bytes, w.group, rows, first, count, y);
    for (int64_t b = 0; b < blocks; ++b)
        dot(w.format)(bytes + b * w.block_bytes(), w.group, rows, first, count,
                      y + b * count * kBlockRows);
}

int64_t weight_grain(int64_t items, int64_t item_bytes, int64_t tokens, int threads) {
    const int64_t work = item_bytes * std::clamp<int64_t>(tokens, 1, kTokenChunk);
    if (items * work <= kSerialBytes) return items;
    return std::clamp<int64_t>(items / (4 * threads), 1, std::max<int64_t>(1, kTurnBytes / work));
}

void linear(Pool& pool, const Rows& rows, int64_t count, const std::vector<MatrixView>& matrices,
            const std::vector<float*>& outs, bool accumulate) {
    int64_t all_pairs = 0, bytes = 0;
    for (const auto& w : matrices) {
        all_pairs += pairs(w);
        bytes += w.nbytes();
    }
    if (all_pairs == 0) return;
    const LinearJob job{kernels().linear, rows, count, matrices, outs, accumulate, all_pairs};
    const int64_t items = all_pairs * ((count + kTokenChunk - 1) / kTokenChunk);
    const int64_t grain = weight_grain(items, bytes / all_pairs, count, pool.threads());
    pool.parallel_for(items, grain, std::cref(job));
}

}  // namespace flashmoe
