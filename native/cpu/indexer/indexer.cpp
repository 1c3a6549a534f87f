#include "cpu/indexer/indexer.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/tile/tile.h"
#include "cpu/workspace.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

constexpr int64_t kBlock = 64;                    // keys scored at once
constexpr int64_t kMaxScores = int64_t{4} << 20;  // held at once, unless one query has more
constexpr float kLowest = -std::numeric_limits<float>::infinity();

class Indexer {
  public:
    explicit Indexer(const IndexTopk& call) : call_(call), tile_(kernels().attention.tile) {}

    void run(Pool& pool) {
        static thread_local Workspace scratch, scores;
        width_ = (*std::max_element(call_.seen, call_.seen + call_.tokens) + kBlock - 1) / kBlock *
                 kBlock;
        const int64_t piece =
            std::clamp<int64_t>(kMaxScores / std::max<int64_t>(width_, 1), 1, call_.tokens);
        scratch_ = scratch.floats(pool.threads() * scratch_floats());
        scores_ = scores.floats(piece * width_);
        for (int64_t first = 0; first < call_.tokens; first += piece)
            queries(pool, first, std::min(piece, call_.tokens - first));
    }

  private:
    void queries(Pool& pool, int64_t first, int64_t count) {
        const int64_t blocks = width_ / kBlock;
        pool.parallel_for(count * blocks, 1, [&](int64_t begin, int64_t end, int worker) {
            for (int64_t i = begin; i < end; ++i)
                score(first + i / blocks, i % blocks * kBlock, scores_ + i * kBlock, worker);
        });
        pool.parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) choose(first + i, scores_ + i * width_);
        });
    }

    // Of the keys from `key` on that query t sees, at most kBlock.
    void score(int64_t t, int64_t key, float* out, int worker) {
        const int64_t count = std::min(kBlock, call_.seen[t] - key);
        if (count <= 0) return;
        float* transposed = scratch_ + worker * scratch_floats();
        float* products = transposed + kBlock * call_.dim;
        load_keys(key, count, transposed);
        tile_.matmul({call_.heads, kBlock, call_.dim},
                     {call_.q + t * call_.heads * call_.dim, call_.dim}, {transposed, kBlock},
                     {products, kBlock}, false);
        std::fill_n(out, count, 0.0f);
        for (int64_t h = 0; h < call_.heads; ++h, products += kBlock) {
            const float weight = call_.weights[t * call_.heads + h];
            for (int64_t s = 0; s < count; ++s) out[s] += weight * std::max(products[s], 0.0f);
        }
    }

    void load_keys(int64_t key, int64_t count, float* dst) const {
        const int64_t dim = call_.dim;
        if (call_.half)
            tile_.transpose_half(static_cast<const uint16_t*>(call_.keys) + key * dim, dim, count,
                                 dim, dst, kBlock);
        else
            tile_.transpose(static_cast<const float*>(call_.keys) + key * dim, dim, count, dim, dst,
                            kBlock);
    }

    void choose(int64_t t, float* scores) const {
        static thread_local std::vector<int32_t> order;
        const int64_t seen = call_.seen[t], k = std::min(call_.k, seen);
        int32_t* ids = call_.ids + t * call_.k;
        // What is not a number has no place in an order.
        for (int64_t s = 0; s < seen; ++s)
            if (scores[s] != scores[s]) scores[s] = kLowest;
        order.resize(static_cast<size_t>(seen));
        std::iota(order.begin(), order.end(), 0);
        const auto better = [&](int32_t a, int32_t b) {
            return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
        };
        if (k < seen) std::nth_element(order.begin(), order.begin() + k, order.end(), better);
        std::sort(order.begin(), order.begin() + k);
        std::copy_n(order.begin(), k, ids);
        std::fill_n(ids + k, call_.k - k, -1);
    }

    // A worker's: transposed keys, products.
    int64_t scratch_floats() const {
        return Workspace::aligned(kBlock * (call_.dim + call_.heads));
    }

    const IndexTopk& call_;
    const TileKernels& tile_;
    int64_t width_ = 0;
    float *scratch_ = nullptr, *scores_ = nullptr;
};

}  // namespace

void index_topk(Pool& pool, const IndexTopk& call) {
    if (call.tokens > 0) Indexer(call).run(pool);
}

}  // namespace flashmoe
