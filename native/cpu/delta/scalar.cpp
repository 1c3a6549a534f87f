#include "cpu/delta/delta.h"

namespace flashmoe {

void register_delta_scalar(DeltaKernels&) {}

}  // namespace flashmoe
