#include "cpu/rope/rope.h"

#include <algorithm>

#include "cpu/grain.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

void one_head(const HeadNormRope& call, int64_t token, int64_t head) {
    const float* x = call.x + token * call.token_stride + head * call.head_stride;
    float* out = call.out + token * call.out_token_stride + head * call.out_head_stride;
    if (call.weight != nullptr)
        kernels().norm.rms(x, call.weight, call.dim, call.eps, out);
    else if (x != out)
        std::copy_n(x, call.dim, out);
    const int64_t angles = token * call.half;
    kernels().rope.rotate(out, call.cos + angles, call.sin + angles, call.half);
}

}  // namespace

void head_norm_rope(Pool& pool, const HeadNormRope& call) {
    const int64_t items = call.tokens * call.heads;
    pool.parallel_for(items, cheap_grain(call.dim), [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; ++item)
            one_head(call, item / call.heads, item % call.heads);
    });
}

}  // namespace flashmoe
