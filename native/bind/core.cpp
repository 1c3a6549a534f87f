#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {

void bind_core(nb::module_& m) {
    nb::class_<Pool>(m, "Pool", "Worker threads of a fixed number; the caller is one of them.")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("threads", &Pool::threads);
    m.def("isa", [] { return kernels().isa; }, "The instruction set of the kernels in use.");
    m.def("available_isas", &available_isas, "What this machine can run, slowest first.");
    m.def("select_isa", &select_isa, nb::arg("name"),
          "Use the kernels of one instruction set ('auto': the best) in the whole process.");
}

}  // namespace flashmoe
