#pragma once

namespace flashmoe {

struct LinearKernels {};

void register_linear_scalar(LinearKernels& table);
void register_linear_avx2(LinearKernels& table);

}  // namespace flashmoe
