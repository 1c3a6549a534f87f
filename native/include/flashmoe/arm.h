// What an ARM processor can do beyond the ARMv8.0 that every one of them has.
#pragma once

#if defined(__aarch64__)

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace flashmoe::arm {

#if defined(__linux__)
inline bool has_dot_product() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
inline bool has_crc32() { return getauxval(AT_HWCAP) & HWCAP_CRC32; }
#else  // Apple: every processor since the first Mac with ARM
inline bool has_dot_product() { return true; }
inline bool has_crc32() { return true; }
#endif

}  // namespace flashmoe::arm

#endif
