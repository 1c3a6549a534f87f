#pragma once

namespace flashmoe {

struct RoutingKernels {};

void register_routing_scalar(RoutingKernels& table);
void register_routing_avx2(RoutingKernels& table);

}  // namespace flashmoe
