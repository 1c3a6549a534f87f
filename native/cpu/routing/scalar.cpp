#include "cpu/routing/routing.h"

namespace flashmoe {

void register_routing_scalar(RoutingKernels&) {}

}  // namespace flashmoe
