#pragma once

namespace flashmoe {

struct RopeKernels {};

void register_rope_scalar(RopeKernels& table);
void register_rope_avx2(RopeKernels& table);

}  // namespace flashmoe
