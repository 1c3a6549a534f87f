#include "cpu/elementwise/elementwise.h"

namespace flashmoe {

void register_elementwise_avx2(ElementwiseKernels&) {}

}  // namespace flashmoe
