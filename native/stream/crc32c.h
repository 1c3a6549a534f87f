// CRC-32C (Castagnoli), the checksum of expert records.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

// The checksum of `bytes` bytes, continuing `crc` (0 to begin). Uses the
// instruction for it (SSE4.2, ARM) where the CPU has one.
uint32_t crc32c(const void* data, size_t bytes, uint32_t crc = 0);

// The same, by tables, on any machine.
uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t crc = 0);

}  // namespace flashmoe
