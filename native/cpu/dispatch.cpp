#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "flashmoe/amx.h"
#include "flashmoe/arm.h"
#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

void register_scalar(Kernels& table) {
    register_codec_scalar(table.codec);
    register_linear_scalar(table.linear);
    register_mxfp4_scalar(table.linear);
    register_codebook_scalar(table.linear);
    register_blocks_scalar(table.linear);
    register_norm_scalar(table.norm);
    register_rope_scalar(table.rope);
    register_attention_scalar(table.attention);
    register_delta_scalar(table.delta);
    register_routing_scalar(table.routing);
    register_elementwise_scalar(table.elementwise);
    register_probe_scalar(table.probe);
}

#if defined(__x86_64__)
void register_avx2(Kernels& table) {
    register_codec_avx2(table.codec);
    register_linear_avx2(table.linear);
    register_mxfp4_avx2(table.linear);
    register_codebook_avx2(table.linear);
    register_blocks_avx2(table.linear);
    register_norm_avx2(table.norm);
    register_rope_avx2(table.rope);
    register_attention_avx2(table.attention);
    register_delta_avx2(table.delta);
    register_routing_avx2(table.routing);
    register_elementwise_avx2(table.elementwise);
    register_probe_avx2(table.probe);
}

// The other ops stay those of AVX2: docs/kernels.md says why.
void register_avx512(Kernels& table) {
    register_linear_avx512(table.linear);
    register_mxfp4_avx512(table.linear);
    register_codebook_avx512(table.linear);
    register_blocks_avx512(table.linear);
    register_attention_avx512(table.attention);
    register_tile_avx512(table.delta.tile);
    register_norm_avx512(table.norm);
    register_elementwise_avx512(table.elementwise);
    register_probe_avx512(table.probe);
}

void register_amx(Kernels& table) {
    register_linear_amx(table.linear);
    register_probe_amx(table.probe);
}

// The builtins read XCR0 too: they are true only where the system saves the wide registers.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
void register_neon(Kernels& table) {
    register_codec_neon(table.codec);
    register_linear_neon(table.linear);
    register_blocks_neon(table.linear);
    register_norm_neon(table.norm);
    register_rope_neon(table.rope);
    register_attention_neon(table.attention);
    register_delta_neon(table.delta);
    register_routing_neon(table.routing);
    register_elementwise_neon(table.elementwise);
    register_probe_neon(table.probe);
}
#endif

// Slowest first; each one's kernels overwrite those of the sets before it.
struct InstructionSet {
    const char* name;
    bool (*available)();
    void (*add)(Kernels&);
};

constexpr InstructionSet kSets[] = {
    {"scalar", [] { return true; }, register_scalar},
#if defined(__x86_64__)
    {"avx2", has_avx2, register_avx2},
    {"avx512", has_avx512, register_avx512},
    {"amx", amx::enable, register_amx},
#elif defined(__aarch64__)
    {"neon", arm::has_dot_product, register_neon},
#endif
};

// One table per instruction set, never changed: a kernel that runs keeps what it began with.
const std::vector<Kernels>& tables() {
    static const std::vector<Kernels> all = [] {
        std::vector<Kernels> built;
        Kernels table;
        for (const InstructionSet& set : kSets) {
            if (!set.available()) break;
            table.isa = set.name;
            set.add(table);
            built.push_back(table);
        }
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
    std::vector<std::string> isas;
    for (const Kernels& table : tables()) isas.push_back(table.isa);
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
