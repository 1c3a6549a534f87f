#pragma once

namespace flashmoe {

struct NormKernels {};

void register_norm_scalar(NormKernels& table);
void register_norm_avx2(NormKernels& table);

}  // namespace flashmoe
