// The AVX-512 kernels of two blocks, for other sets to fall back on: same bits, any count.
#pragma once

#include "cpu/linear/linear.h"

namespace flashmoe::avx512 {

void pair_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
             float* y);
void pair_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
             float* y);
void pair_bf16(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
               float* y);

}  // namespace flashmoe::avx512
