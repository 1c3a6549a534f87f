// As cpu/mxfp4/avx512.cpp: a table look-up makes unsigned levels of the codes, which dpbusd wants;
// the sum starts at -kShift times that of the activations.
#include <immintrin.h>

#include "cpu/codebook/codebook.h"
#include "cpu/linear/tiles_avx512.h"

namespace flashmoe {
namespace {

using avx512::Call;
using avx512::One;
using avx512::Tile;
using avx512::TileKernel;
using avx512::Two;

// Unsigned levels of the codes below 16, and of those above.
struct Levels {
    __m128i low, high;
};

template <int kBits>
Levels levels() {
    alignas(16) uint8_t table[32] = {};
    for (int i = 0; i < 1 << kBits; ++i)
        table[i] = static_cast<uint8_t>(kLevels<kBits>[i] + kShift<kBits>);
    const auto* halves = reinterpret_cast<const __m128i*>(table);
    return {_mm_load_si128(halves), _mm_load_si128(halves + 1)};
}

// The weights of columns 4 part .. 4 part + 3 of a chunk. Shifts run over bytes, masks do not.
template <typename V, int kBits>
[[gnu::always_inline]] inline typename V::Int weights(const Levels& table, const uint8_t* bytes,
                                                      int64_t stride, int part) {
    using Int = typename V::Int;
    constexpr int kLow = kCodebookLow<kBits>, kFields = 8 / kLow;
    const Int low = V::load(bytes + part / kFields * 32, stride);
    const Int code = (low >> (part % kFields * kLow)) & V::all(((1 << kLow) - 1) * 0x01010101);
    if constexpr (kBits == kLow) {
        return V::look_up(table.low, code);
    } else {
        const Int high = V::load(bytes + kLow * 32, stride);
        if constexpr (kBits == 3)
            return V::look_up(
                table.low,
                code | ((part < 2 ? high << (2 - part) : high >> (part - 2)) & V::all(0x04040404)));
        // A look-up with bit 7 set gives 0: each table gives its own half.
        const Int top = V::all(static_cast<int32_t>(0x80808080));
        const Int below = code | ((high << (7 - part)) & top);
        return V::look_up(table.low, below) | V::look_up(table.high, below ^ top);
    }
}

template <typename V, int kBits, int kTokens>
[[gnu::always_inline]] inline void add_chunk(const Levels& table, const uint8_t* bytes,
                                             const Call& call, const Tile<kTokens>& tile,
                                             int64_t column, typename V::Int (&dot)[kTokens]) {
    using Int = typename V::Int;
#pragma GCC unroll 8
    for (int part = 0; part < 8; ++part) {
        const Int w = weights<V, kBits>(table, bytes, call.stride_bytes, part);
        for (int t = 0; t < kTokens; ++t) {
            const int8_t* x = tile.codes[t] + column + 4 * part;
            dot[t] = V::dot(dot[t], w, avx512::broadcast_codes<V>(x));
        }
    }
}

template <typename V>
typename V::Float scales(const uint8_t* p, int64_t stride);

template <>
__m256 scales<One>(const uint8_t* p, int64_t) {
    const __m256i bits = _mm256_cvtepu8_epi32(_mm_loadu_si64(p));
    const __m256i base = _mm256_set1_epi32(static_cast<int32_t>(kScaleBase));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(bits, base), 20));
}

template <>
__m512 scales<Two>(const uint8_t* p, int64_t stride) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(scales<One>(p, 0)), scales<One>(p + stride, 0),
                              1);
}

template <typename V, int kBits, int kTokens>
void tile(const uint8_t* bytes, const Call& call) {
    const Levels table = levels<kBits>();
    const int64_t group = call.rows.group;
    const Tile<kTokens> tile(call.rows, group, call.first);
    typename V::Float acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / group; ++g, bytes += kBlockRows) {
        typename V::Int dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = V::all(tile.offsets[t][g] / 128 * kShift<kBits>);
        for (int64_t c = 0; c < group; c += 32, bytes += kChunkBytes<kBits>)
            add_chunk<V, kBits>(table, bytes, call, tile, g * group + c, dot);
        const auto scale = scales<V>(bytes, call.stride_bytes);
        for (int t = 0; t < kTokens; ++t) {
            const auto value = V::all(tile.scales[t][g]) * V::floats(dot[t]);
            acc[t] = V::multiply_add(scale, value, acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) V::store(call.y + t * kBlockRows, call.stride_y, acc[t]);
}

template <int kBits>
constexpr TileKernel kTiles[] = {tile<One, kBits, 1>, tile<One, kBits, 2>, tile<One, kBits, 3>,
                                 tile<One, kBits, 4>};
template <int kBits>
constexpr TileKernel kPairs[] = {tile<Two, kBits, 1>, tile<Two, kBits, 2>, tile<Two, kBits, 3>,
                                 tile<Two, kBits, 4>, tile<Two, kBits, 5>, tile<Two, kBits, 6>,
                                 tile<Two, kBits, 7>, tile<Two, kBits, 8>};

template <int kBits>
void dot(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count, float* y) {
    avx512::run_tiles(kTiles<kBits>, bytes, {rows, first, 0, y, 0}, count);
}

template <int kBits, Format kFormat>
void pair(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
          float* y) {
    avx512::pair<dot<kBits>, kFormat>(kPairs<kBits>, bytes, group, rows, first, count, y);
}

}  // namespace

void register_codebook_avx512(LinearKernels& table) {
    table.dot_q2 = dot<2>;
    table.dot_q3 = dot<3>;
    table.dot_q4n = dot<4>;
    table.dot_q5 = dot<5>;
    table.pair_q2 = pair<2, Format::q2>;
    table.pair_q3 = pair<3, Format::q3>;
    table.pair_q4n = pair<4, Format::q4n>;
    table.pair_q5 = pair<5, Format::q5>;
}

}  // namespace flashmoe
