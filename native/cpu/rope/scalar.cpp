#include "cpu/rope/rope.h"

namespace flashmoe {

void register_rope_scalar(RopeKernels&) {}

}  // namespace flashmoe
