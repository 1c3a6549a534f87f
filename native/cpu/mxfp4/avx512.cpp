// As cpu/linear/avx512.cpp does q4. Codes become twice their value plus 12 by table look-up, since
// dpbusd wants unsigned weights; the sum starts at -12 times that of the activations.
#include <immintrin.h>

#include "cpu/linear/tiles_avx512.h"
#include "cpu/mxfp4/mxfp4.h"

namespace flashmoe {
namespace {

using avx512::Call;
using avx512::One;
using avx512::Tile;
using avx512::TileKernel;
using avx512::Two;

constexpr int64_t kGroup = 32;

// offset is -128 * sum(codes).
int32_t twelfth(int32_t offset) { return offset / 32 * 3; }

template <typename V, int kTokens>
void tile(const uint8_t* bytes, const Call& call) {
    using Int = typename V::Int;
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    const Tile<kTokens> tile(call.rows, kGroup, call.first);
    typename V::Float acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g, bytes += kBlockRows) {
        Int dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = V::all(twelfth(tile.offsets[t][g]));
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; c += 8, bytes += 32) {
            if (kTokens == 1 && c % 16 == 0) avx512::prefetch(bytes);
            const Int units = V::load(bytes, call.stride_bytes);
            const Int low = V::look_up(table, units & V::all(0x0F0F0F0F));
            const Int high = V::look_up(table, V::high_nibbles(units));
            for (int t = 0; t < kTokens; ++t) {
                const int8_t* x = tile.codes[t] + g * kGroup + c;
                dot[t] = V::dot(dot[t], low, avx512::broadcast_codes<V>(x));
                dot[t] = V::dot(dot[t], high, avx512::broadcast_codes<V>(x + 4));
            }
        }
        const auto scale = V::e8m0(bytes, call.stride_bytes);
        for (int t = 0; t < kTokens; ++t) {
            const auto value = V::all(0.5f * tile.scales[t][g]) * V::floats(dot[t]);
            acc[t] = V::multiply_add(scale, value, acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) V::store(call.y + t * kBlockRows, call.stride_y, acc[t]);
}

constexpr TileKernel kTiles[] = {tile<One, 1>, tile<One, 2>, tile<One, 3>, tile<One, 4>};
constexpr TileKernel kPairs[] = {tile<Two, 1>, tile<Two, 2>, tile<Two, 3>, tile<Two, 4>,
                                 tile<Two, 5>, tile<Two, 6>, tile<Two, 7>, tile<Two, 8>};

void dot_mxfp4(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
               float* y) {
    avx512::run_tiles(kTiles, bytes, {rows, first, 0, y, 0}, count);
}

void pair_mxfp4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
                float* y) {
    avx512::pair<dot_mxfp4, Format::mxfp4>(kPairs, bytes, group, rows, first, count, y);
}

}  // namespace

void register_mxfp4_avx512(LinearKernels& table) {
    table.dot_mxfp4 = dot_mxfp4;
    table.pair_mxfp4 = pair_mxfp4;
}

}  // namespace flashmoe
