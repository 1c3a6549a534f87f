#include "cpu/linear/heads.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "cpu/linear/activations.h"
#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

// Items are (token chunk, 8-row block), blocks running through all heads in turn.
struct HeadJob {
    const LinearKernels& table;
    const HeadLinear& call;
    const Rows& rows;  // with an index: head h of token t is row h * tokens + t
    int64_t head_blocks;

    void operator()(int64_t begin, int64_t end, int) const {
        const int64_t blocks = head_blocks * call.heads;
        for (int64_t item = begin; item < end; ++item)
            multiply(item % blocks / head_blocks, item % head_blocks, item / blocks * kTokenChunk);
    }

    void multiply(int64_t head, int64_t block, int64_t first) const {
        float y[kTokenChunk * kBlockRows];
        const int64_t tokens = std::min(kTokenChunk, call.tokens - first);
        table.dot(call.w.format)(call.w.block(head * head_blocks + block), call.w.group, rows,
                                 head * call.tokens + first, tokens, y);
        float* out = call.out + head * call.head_stride + block * kBlockRows;
        for (int64_t t = 0; t < tokens; ++t)
            std::copy_n(y + t * kBlockRows, kBlockRows, out + (first + t) * call.token_stride);
    }
};

// Where head h of token t lies, heads outermost.
const int32_t* head_index(int64_t tokens, int64_t heads) {
    static thread_local std::vector<int32_t> index;
    grow(index, tokens * heads);
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < tokens; ++t)
            index[h * tokens + t] = static_cast<int32_t>(t * heads + h);
    return index.data();
}

}  // namespace

void head_linear(Pool& pool, const HeadLinear& call) {
    Rows rows = call.rows;
    rows.index = head_index(call.tokens, call.heads);
    const HeadJob job{kernels().linear, call, rows, call.w.blocks() / call.heads};
    const int64_t items = call.w.blocks() * ((call.tokens + kTokenChunk - 1) / kTokenChunk);
    const int64_t grain = weight_grain(items, call.w.block_bytes(), call.tokens, pool.threads());
    pool.parallel_for(items, grain, std::cref(job));
}

}  // namespace flashmoe
