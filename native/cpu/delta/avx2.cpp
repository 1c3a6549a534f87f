#include "cpu/delta/delta.h"

namespace flashmoe {

void register_delta_avx2(DeltaKernels&) {}

}  // namespace flashmoe
