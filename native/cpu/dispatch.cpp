#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

Kernels build(const std::string& isa) {
    Kernels table;
    table.isa = isa;
    register_codec_scalar(table.codec);
    register_linear_scalar(table.linear);
    register_norm_scalar(table.norm);
    register_rope_scalar(table.rope);
    register_attention_scalar(table.attention);
    register_delta_scalar(table.delta);
    register_routing_scalar(table.routing);
    register_elementwise_scalar(table.elementwise);
    register_probe_scalar(table.probe);
#if defined(__x86_64__)
    if (isa == "avx2") {
        register_codec_avx2(table.codec);
        register_linear_avx2(table.linear);
        register_norm_avx2(table.norm);
        register_rope_avx2(table.rope);
        register_attention_avx2(table.attention);
        register_delta_avx2(table.delta);
        register_routing_avx2(table.routing);
        register_elementwise_avx2(table.elementwise);
        register_probe_avx2(table.probe);
    }
#endif
    return table;
}

// One table per instruction set, never changed: a kernel that runs keeps what it began with.
const std::vector<Kernels>& tables() {
    static const std::vector<Kernels> all = [] {
        std::vector<Kernels> built;
        for (const std::string& isa : available_isas()) built.push_back(build(isa));
        return built;
    }();
    return all;
}

std::atomic<const Kernels*>& current() {
    static std::atomic<const Kernels*> table{&tables().back()};
    return table;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> isas{"scalar"};
#if defined(__x86_64__)
    // The builtin reads XCR0 too: it is true only where the system saves the wide registers.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        isas.push_back("avx2");
#endif
    return isas;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

void select_isa(const std::string& name) {
    const std::string& wanted = name == "auto" ? tables().back().isa : name;
    const auto found = std::find_if(tables().begin(), tables().end(),
                                    [&](const Kernels& table) { return table.isa == wanted; });
    if (found == tables().end())
        throw std::invalid_argument("[select_isa] this machine cannot run '" + name + "'");
    current() = &*found;
}

}  // namespace flashmoe
