// A linear map per attention head, all in one call.
#pragma once

#include <cstdint>

#include "cpu/linear/linear.h"

namespace flashmoe {

// Result h of a token = rows [h * n, (h + 1) * n) of w times input h, n = w.rows / heads.
struct HeadLinear {
    MatrixView w;  // n is a multiple of kBlockRows
    Rows rows;     // without index: head h of token t is row t * heads + h
    int64_t tokens, heads;
    float* out;  // result r of head h of token t at out[t * token_stride + h * head_stride + r]
    int64_t token_stride, head_stride;
};

void head_linear(Pool& pool, const HeadLinear& call);

}  // namespace flashmoe
