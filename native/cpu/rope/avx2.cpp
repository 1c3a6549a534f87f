#include "cpu/rope/rope.h"

namespace flashmoe {

void register_rope_avx2(RopeKernels&) {}

}  // namespace flashmoe
