#include "stream/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>

#include "flashmoe/arm.h"
#endif

namespace flashmoe {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kPolynomial = 0x82F63B78;  // reflected

using Table = std::array<uint32_t, 256>;

constexpr Table make_byte_table() {
    Table table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
        table[byte] = crc;
    }
    return table;
}

constexpr Table kByteTable = make_byte_table();

constexpr uint32_t append_zero_byte(uint32_t crc) { return (crc >> 8) ^ kByteTable[crc & 255]; }

// slices[i][b]: the effect of byte b followed by i zero bytes.
constexpr std::array<Table, 8> make_slices() {
    std::array<Table, 8> slices{kByteTable};
    for (int i = 1; i < 8; ++i)
        for (int byte = 0; byte < 256; ++byte)
            slices[i][byte] = append_zero_byte(slices[i - 1][byte]);
    return slices;
}

constexpr std::array<Table, 8> kSlices = make_slices();

inline uint64_t load_u64(const uint8_t* data) {
    uint64_t word;
    std::memcpy(&word, data, sizeof word);
    return word;
}

// What the processor brings: the type that its instruction keeps a checksum in, and the
// instruction. Functions that use it are compiled for it, whatever the rest is compiled for.
#if defined(__x86_64__)

#define FLASHMOE_CRC_CODE __attribute__((target("sse4.2")))
using Register = uint64_t;

bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
FLASHMOE_CRC_CODE inline Register append_word(Register crc, uint64_t word) {
    return _mm_crc32_u64(crc, word);
}
FLASHMOE_CRC_CODE inline Register append_byte(Register crc, uint8_t byte) {
    return _mm_crc32_u8(static_cast<uint32_t>(crc), byte);
}

#elif defined(__aarch64__)

#define FLASHMOE_CRC_CODE __attribute__((target("+crc")))
using Register = uint32_t;

bool has_instruction() { return arm::has_crc32(); }
FLASHMOE_CRC_CODE inline Register append_word(Register crc, uint64_t word) {
    return __crc32cd(crc, word);
}
FLASHMOE_CRC_CODE inline Register append_byte(Register crc, uint8_t byte) {
    return __crc32cb(crc, byte);
}

#endif

#if defined(FLASHMOE_CRC_CODE)

// The instruction takes 3 cycles but one may start in each: three lanes run side by side.
// Long lanes let the memory prefetcher follow (20 GB/s from DRAM where 2 KiB lanes had 8 on Zen 3);
// short ones serve the rest.
constexpr size_t kLongLane = 64 << 10;
constexpr size_t kShortLane = 2 << 10;

// A linear map of checksums, as the images of the 32 bits.
using Map = std::array<uint32_t, 32>;

constexpr uint32_t apply(const Map& map, uint32_t crc) {
    uint32_t image = 0;
    for (int bit = 0; bit < 32; ++bit)
        if (crc >> bit & 1) image ^= map[bit];
    return image;
}

// The effect of `bytes` zero bytes, a power of two: that of one byte, doubled again and again.
constexpr Map append_zeros(size_t bytes) {
    Map map{};
    for (int bit = 0; bit < 32; ++bit) map[bit] = append_zero_byte(uint32_t{1} << bit);
    for (; bytes > 1; bytes /= 2) {
        Map twice{};
        for (int bit = 0; bit < 32; ++bit) twice[bit] = apply(map, map[bit]);
        map = twice;
    }
    return map;
}

// The same map by bytes: [i][b] is the image of byte i of a checksum, of value b.
constexpr std::array<Table, 4> make_shift(size_t bytes) {
    const Map map = append_zeros(bytes);
    std::array<Table, 4> shift{};
    for (int i = 0; i < 4; ++i)
        for (uint32_t byte = 0; byte < 256; ++byte) shift[i][byte] = apply(map, byte << (8 * i));
    return shift;
}

template <size_t kLane>
inline uint32_t append_lane(uint32_t crc) {
    static constexpr std::array<Table, 4> kShift = make_shift(kLane);
    return kShift[0][crc & 255] ^ kShift[1][crc >> 8 & 255] ^ kShift[2][crc >> 16 & 255] ^
           kShift[3][crc >> 24];
}

template <size_t kLane>
FLASHMOE_CRC_CODE uint32_t three_lanes(const uint8_t* data, uint32_t crc) {
    Register first = crc, second = 0, third = 0;
    for (size_t i = 0; i < kLane; i += 8) {
        first = append_word(first, load_u64(data + i));
        second = append_word(second, load_u64(data + kLane + i));
        third = append_word(third, load_u64(data + 2 * kLane + i));
    }
    crc = append_lane<kLane>(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    return append_lane<kLane>(crc) ^ static_cast<uint32_t>(third);
}

FLASHMOE_CRC_CODE uint32_t crc32c_by_instruction(const uint8_t* data, size_t bytes, uint32_t crc) {
    crc = ~crc;
    for (; bytes >= 3 * kLongLane; data += 3 * kLongLane, bytes -= 3 * kLongLane)
        crc = three_lanes<kLongLane>(data, crc);
    for (; bytes >= 3 * kShortLane; data += 3 * kShortLane, bytes -= 3 * kShortLane)
        crc = three_lanes<kShortLane>(data, crc);
    Register rest = crc;
    for (; bytes >= 8; data += 8, bytes -= 8) rest = append_word(rest, load_u64(data));
    for (; bytes > 0; ++data, --bytes) rest = append_byte(rest, *data);
    return ~static_cast<uint32_t>(rest);
}

#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t crc) {
    const auto* next = static_cast<const uint8_t*>(data);
    crc = ~crc;
    for (; bytes >= 8; next += 8, bytes -= 8) {
        const uint64_t word = load_u64(next) ^ crc;
        crc = 0;
        for (int i = 0; i < 8; ++i) crc ^= kSlices[7 - i][word >> (8 * i) & 255];
    }
    for (; bytes > 0; ++next, --bytes) crc = append_zero_byte(crc ^ *next);
    return ~crc;
}

uint32_t crc32c(const void* data, size_t bytes, uint32_t crc) {
#if defined(FLASHMOE_CRC_CODE)
    static const bool fast = has_instruction();
    if (fast) return crc32c_by_instruction(static_cast<const uint8_t*>(data), bytes, crc);
#endif
    return crc32c_portable(data, bytes, crc);
}

}  // namespace flashmoe
