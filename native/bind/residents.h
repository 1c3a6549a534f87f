// Where resident experts lie, looked up without a Python object per expert: between streamed
// weights every object that Python touches comes from memory.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"

namespace flashmoe {

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

    // Whether all `count` ids are resident: then their addresses are in found and their uses noted.
    bool find(int64_t layer, const int32_t* ids, int64_t count, uint64_t* found) {
        if (layer < 0 || static_cast<size_t>(layer) >= layers_.size()) return false;
        const auto& table = layers_[layer];
        for (int64_t i = 0; i < count; ++i) {
            const uint64_t address = at(table, ids[i]);
            if (address == 0) return false;
            found[i] = address;
        }
        for (int64_t i = 0; i < count; ++i) uses_.emplace_back(layer, ids[i]);
        hits_ += count;
        return true;
    }

    int64_t uses() const { return static_cast<int64_t>(uses_.size()); }

    std::vector<std::pair<int64_t, int64_t>> take_uses() { return std::exchange(uses_, {}); }

    int64_t take_hits() { return std::exchange(hits_, 0); }

  private:
    static constexpr const char* kOp = "ResidentTable";

    static uint64_t at(const std::vector<uint64_t>& table, int32_t expert) {
        return expert >= 0 && static_cast<size_t>(expert) < table.size() ? table[expert] : 0;
    }

    int64_t experts_, hits_ = 0;
    std::vector<std::vector<uint64_t>> layers_;  // [layer][expert]; empty where none ever was
    std::vector<std::pair<int64_t, int64_t>> uses_;
};

}  // namespace flashmoe
