#include "cpu/elementwise/elementwise.h"

namespace flashmoe {

void register_elementwise_scalar(ElementwiseKernels&) {}

}  // namespace flashmoe
