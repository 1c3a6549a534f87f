#include "cpu/attention/attention.h"

namespace flashmoe {

void register_attention_scalar(AttentionKernels&) {}

}  // namespace flashmoe
