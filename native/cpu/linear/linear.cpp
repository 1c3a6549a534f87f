#include "cpu/linear/linear.h"

#include <algorithm>
#include <functional>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

constexpr int64_t kGrainBytes = 64 << 10;

// Items are (token chunk, 8-row block), blocks running through all matrices in turn.
struct LinearJob {
    const LinearKernels& table;
    const Rows& rows;
    int64_t count;
    const std::vector<MatrixView>& matrices;
    const std::vector<float*>& outs;
    bool accumulate;
    int64_t blocks;

    void operator()(int64_t begin, int64_t end, int) const {
        for (int64_t item = begin; item < end; ++item) {
            int64_t block = item % blocks;
            size_t m = 0;
            for (; block >= matrices[m].blocks(); ++m) block -= matrices[m].blocks();
            multiply(matrices[m], block, item / blocks * kTokenChunk, outs[m]);
        }
    }

    void multiply(const MatrixView& w, int64_t block, int64_t first, float* out) const {
        float y[kTokenChunk * kBlockRows];
        const int64_t tokens = std::min(kTokenChunk, count - first);
        table.dot(w.format)(w.block(block), w.group, rows, first, tokens, y);
        const int64_t row = block * kBlockRows, height = std::min(kBlockRows, w.rows - row);
        for (int64_t t = 0; t < tokens; ++t)
            store(y + t * kBlockRows, out + (first + t) * w.rows + row, height);
    }

    void store(const float* y, float* out, int64_t height) const {
        for (int64_t r = 0; r < height; ++r) out[r] = accumulate ? out[r] + y[r] : y[r];
    }
};

}  // namespace

int64_t weight_grain(int64_t items, int64_t item_bytes, int64_t tokens, int threads) {
    const int64_t work = item_bytes * std::clamp<int64_t>(tokens, 1, kTokenChunk);
    if (items * work <= kGrainBytes) return items;
    return std::clamp<int64_t>(items / (4 * threads), 1, std::max<int64_t>(1, kGrainBytes / work));
}

void linear(Pool& pool, const Rows& rows, int64_t count, const std::vector<MatrixView>& matrices,
            const std::vector<float*>& outs, bool accumulate) {
    int64_t blocks = 0, bytes = 0;
    for (const auto& w : matrices) {
        blocks += w.blocks();
        bytes += w.nbytes();
    }
    if (blocks == 0) return;
    const LinearJob job{kernels().linear, rows, count, matrices, outs, accumulate, blocks};
    const int64_t items = blocks * ((count + kTokenChunk - 1) / kTokenChunk);
    const int64_t grain = weight_grain(items, bytes / blocks, count, pool.threads());
    pool.parallel_for(items, grain, std::cref(job));
}

}  // namespace flashmoe
