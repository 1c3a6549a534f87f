#include "flashmoe/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace flashmoe::amx {
namespace {

constexpr unsigned kTileBit = 1u << 24, kInt8Bit = 1u << 25;  // of CPUID leaf 7, EDX

bool has_instructions() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d & kTileBit) && (d & kInt8Bit);
}

}  // namespace

// Linux saves the 8 KiB of tiles only for processes that ask (ARCH_REQ_XCOMP_PERM of component 18);
// threads started later inherit the permission. A kernel that cannot save them refuses.
bool enable() {
    constexpr long kRequest = 0x1023, kTileData = 18;
    return has_instructions() && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace flashmoe::amx
#else
namespace flashmoe::amx {

bool enable() { return false; }

}  // namespace flashmoe::amx
#endif
