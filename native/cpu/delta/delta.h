#pragma once

namespace flashmoe {

struct DeltaKernels {};

void register_delta_scalar(DeltaKernels& table);
void register_delta_avx2(DeltaKernels& table);

}  // namespace flashmoe
