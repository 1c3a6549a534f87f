// Products with weights in block formats (cpu/blocks/formats.h); a part of LinearKernels.
#pragma once

namespace flashmoe {

struct LinearKernels;

void register_blocks_scalar(LinearKernels& table);
void register_blocks_avx2(LinearKernels& table);
void register_blocks_avx512(LinearKernels& table);
void register_blocks_neon(LinearKernels& table);

}  // namespace flashmoe
