// Where resident experts lie, looked up without a Python object per expert: between streamed
// weights every object that Python touches comes from memory.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <utility>
#include <vector>

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

class ResidentTable {
  public:
    explicit ResidentTable(int64_t experts) : experts_(experts) {
        expect(experts > 0, kOp, "experts: expected at least 1, got " + std::to_string(experts));
    }

    void put(int64_t layer, int64_t expert, uint64_t address) {
        expect(layer >= 0 && 0 <= expert && expert < experts_, kOp,
               "expert: expected 0 to " + std::to_string(experts_ - 1) + " of a layer, got " +
                   std::to_string(expert) + " of layer " + std::to_string(layer));
        if (static_cast<size_t>(layer) >= layers_.size()) layers_.resize(layer + 1);
        auto& table = layers_[layer];
        if (table.empty()) table.resize(experts_);
        table[expert] = address;
    }

    bool find(int64_t layer, const Lookup& lookup) {
        if (layer < 0 || static_cast<size_t>(layer) >= layers_.size()) return false;
        const auto& table = layers_[layer];
        for (int64_t i = 0; i < lookup.topk; ++i) {
            const uint64_t address = at(table, lookup.wanted[i]);
            if (address == 0) return false;
            lookup.addresses[i] = address;
        }
        for (int64_t i = 0; i < lookup.topk; ++i) uses_.emplace_back(layer, lookup.wanted[i]);
        return true;
    }

    int64_t uses() const { return static_cast<int64_t>(uses_.size()); }

    std::vector<std::pair<int64_t, int64_t>> take_uses() { return std::exchange(uses_, {}); }

  private:
    static constexpr const char* kOp = "ResidentTable";

    static uint64_t at(const std::vector<uint64_t>& table, int32_t expert) {
        return expert >= 0 && static_cast<size_t>(expert) < table.size() ? table[expert] : 0;
    }

    int64_t experts_;
    std::vector<std::vector<uint64_t>> layers_;  // [layer][expert]; empty where none ever was
    std::vector<std::pair<int64_t, int64_t>> uses_;
};

}  // namespace

void bind_residents(nb::module_& m) {
    nb::class_<Lookup>(m, "Lookup", "ids i32 [1, K] to look up, found u64 [K] to fill; kept alive.")
        .def(nb::init<const Out&, const Out&>(), nb::arg("ids"), nb::arg("found"));
    nb::class_<ResidentTable>(m, "ResidentTable", "Addresses of resident experts, by layer.")
        .def(nb::init<int64_t>(), nb::arg("experts"))
        .def("put", &ResidentTable::put, nb::arg("layer"), nb::arg("expert"), nb::arg("address"),
             "The expert lies there from now on; 0: nowhere.")
        .def("find", &ResidentTable::find, nb::arg("layer"), nb::arg("lookup"),
             "Whether all ids are resident: then `found` is filled and their uses are noted.")
        .def_prop_ro("uses", &ResidentTable::uses, "How many uses are noted.")
        .def("take_uses", &ResidentTable::take_uses,
             "The (layer, expert) uses since the last call, in order.");
}

}  // namespace flashmoe
