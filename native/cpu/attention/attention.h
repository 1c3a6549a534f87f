#pragma once

namespace flashmoe {

struct AttentionKernels {};

void register_attention_scalar(AttentionKernels& table);
void register_attention_avx2(AttentionKernels& table);

}  // namespace flashmoe
