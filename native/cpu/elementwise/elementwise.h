#pragma once

namespace flashmoe {

struct ElementwiseKernels {};

void register_elementwise_scalar(ElementwiseKernels& table);
void register_elementwise_avx2(ElementwiseKernels& table);

}  // namespace flashmoe
