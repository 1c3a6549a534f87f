// Products with mxfp4 weights; a part of LinearKernels.
#pragma once

namespace flashmoe {

struct LinearKernels;

void register_mxfp4_scalar(LinearKernels& table);
void register_mxfp4_avx2(LinearKernels& table);
void register_mxfp4_avx512(LinearKernels& table);

}  // namespace flashmoe
