#include "bind/residents.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "bind/parts.h"

namespace flashmoe {
namespace {

// The ids that one token's router writes, and where the addresses of these experts go.
struct Lookup {
    Out ids, found;
    int64_t topk;
    const int32_t* wanted;
    uint64_t* addresses;

    Lookup(const Out& id_array, const Out& found_array)
        : ids(id_array),
          found(found_array),
          topk(extent(id_array, 1)),
          wanted(output<int32_t>("Lookup", "ids", id_array, {1, kAny})),
          addresses(output<uint64_t>("Lookup", "found", found_array, {topk})) {}
};

}  // namespace

void bind_residents(nb::module_& m) {
    nb::class_<Lookup>(m, "Lookup", "ids i32 [1, K] to look up, found u64 [K] to fill; kept alive.")
        .def(nb::init<const Out&, const Out&>(), nb::arg("ids"), nb::arg("found"));
    nb::class_<ResidentTable>(m, "ResidentTable", "Addresses of resident experts, by layer.")
        .def(nb::init<int64_t>(), nb::arg("experts"))
        .def("put", &ResidentTable::put, nb::arg("layer"), nb::arg("expert"), nb::arg("address"),
             "The expert lies there from now on; 0: nowhere.")
        .def(
            "find",
            [](ResidentTable& table, int64_t layer, const Lookup& lookup) {
                return table.find(layer, lookup.wanted, lookup.topk, lookup.addresses);
            },
            nb::arg("layer"), nb::arg("lookup"),
            "Whether all ids are resident: then `found` is filled and their uses are noted.")
        .def_prop_ro("uses", &ResidentTable::uses, "How many uses are noted.")
        .def("take_uses", &ResidentTable::take_uses,
             "The (layer, expert) uses since the last call, in order.")
        .def("take_hits", &ResidentTable::take_hits,
             "How many uses were noted since the last call.");
}

}  // namespace flashmoe
