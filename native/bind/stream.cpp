#include "bind/bind.h"

namespace flashmoe {

void bind_stream(nb::module_&) {}

}  // namespace flashmoe
