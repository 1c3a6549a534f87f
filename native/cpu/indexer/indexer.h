// The keys that sparse attention looks at: those with the best scores of a small second attention,
// DeepSeek-V3.2's lightning indexer.
//
// A score is summed in the order of dimensions and heads, and equal scores are told apart by
// position, so a query's choice does not depend on which other queries share the call nor on the
// number of threads.
#pragma once

#include <cstdint>

namespace flashmoe {

class Pool;

// score(t, s) = sum over h, ascending, of weights[t, h] * max(0, q[t, h] . keys[s]).
struct IndexTopk {
    const float* q;        // [tokens, heads, dim]
    const float* weights;  // [tokens, heads]
    const void* keys;      // [context, dim], float or IEEE half
    bool half;
    const int32_t* seen;  // [tokens]: query t sees keys 0..seen[t] - 1
    int64_t tokens, heads, dim, k;
    // [tokens, k]: the k best keys (equal: the earlier), in ascending order; where fewer are seen,
    // all of them, then -1.
    int32_t* ids;
};

void index_topk(Pool& pool, const IndexTopk& call);

}  // namespace flashmoe
