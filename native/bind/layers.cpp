#include "bind/bind.h"

namespace flashmoe {

void bind_layers(nb::module_&) {}

}  // namespace flashmoe
