#include <immintrin.h>

#include "cpu/probe/probe.h"

namespace flashmoe {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kConfig;

// Products of 16 x 64 and 64 x 16 values, onto four tiles in turn.
int64_t int8_work(int64_t rounds) {
    _tile_loadconfig(&kConfig);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t i = 0; i < rounds; ++i) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_release();
    return rounds * 4 * 2 * 16 * 16 * 64;
}

}  // namespace

void register_probe_amx(ProbeKernels& table) { table.int8_work = int8_work; }

}  // namespace flashmoe
