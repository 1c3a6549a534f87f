#include "cpu/linear/linear.h"

namespace flashmoe {

void register_linear_avx2(LinearKernels&) {}

}  // namespace flashmoe
