#include "cpu/attention/attention.h"

namespace flashmoe {

void register_attention_avx2(AttentionKernels&) {}

}  // namespace flashmoe
