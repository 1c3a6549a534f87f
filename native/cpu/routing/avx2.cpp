#include "cpu/routing/routing.h"

namespace flashmoe {

void register_routing_avx2(RoutingKernels&) {}

}  // namespace flashmoe
