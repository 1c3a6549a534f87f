#include "cpu/norm/norm.h"

namespace flashmoe {

void register_norm_avx2(NormKernels&) {}

}  // namespace flashmoe
