// Products of two blocks with 16 tokens at a time: a group of 64 columns is one tile step, whose
// int32 sums are exact. What follows in floats is done as in the AVX-512 kernels: same bits.
#include <immintrin.h>

#include <cstring>

#include "cpu/linear/avx512.h"
#include "cpu/simd/vector_avx512.h"
#include "cpu/workspace.h"

namespace flashmoe {
namespace {

constexpr int64_t kTokens = 16;
constexpr int64_t kGroup = 64;
constexpr int64_t kTileBytes = 1024;
constexpr int kRows = 16;  // weight rows: two blocks

// Operand of LDTILECFG: all tiles are 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kConfig;

// Tiles belong to the thread; released, so that they are not saved when it is put aside.
class Tiles {
  public:
    Tiles() { _tile_loadconfig(&kConfig); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// Two blocks as tiles: per group 16 rows of 4 columns of 16 weight rows, then scales and biases.
struct Panel {
    uint8_t* codes;
    float *scales, *biases;

    explicit Panel(int64_t groups) {
        static thread_local Workspace memory;
        float* floats = memory.floats(groups * (kTileBytes / 4 + 2 * kRows));
        codes = reinterpret_cast<uint8_t*>(floats);
        scales = floats + groups * kTileBytes / 4;
        biases = scales + groups * kRows;
    }
};

__m512i load_units(const uint8_t* bytes, int64_t stride) {
    const auto half = [](const uint8_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(bytes)), half(bytes + stride), 1);
}

__m512 load_bf16(const uint8_t* bytes, int64_t stride) {
    const auto half = [](const uint8_t* p) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    };
    const __m256i both =
        _mm256_inserti128_si256(_mm256_castsi128_si256(half(bytes)), half(bytes + stride), 1);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(both), 16));
}

void unpack_q4(const uint8_t* bytes, int64_t stride, int64_t groups, const Panel& panel) {
    const __m512i nibble = _mm512_set1_epi8(15);
    uint8_t* to = panel.codes;
    for (int64_t g = 0; g < groups; ++g, bytes += 32) {
        for (int64_t c = 0; c < kGroup; c += 8, bytes += 32, to += 128) {
            const __m512i units = load_units(bytes, stride);
            _mm512_store_si512(to, units & nibble);
            _mm512_store_si512(to + 64, _mm512_srli_epi16(units, 4) & nibble);
        }
        avx512::store(panel.scales + g * kRows, load_bf16(bytes, stride));
        avx512::store(panel.biases + g * kRows, load_bf16(bytes + 16, stride));
    }
}

void unpack_q8(const uint8_t* bytes, int64_t stride, int64_t groups, const Panel& panel) {
    uint8_t* to = panel.codes;
    for (int64_t g = 0; g < groups; ++g, bytes += 32) {
        for (int64_t c = 0; c < kGroup; c += 4, bytes += 32, to += 64)
            _mm512_store_si512(to, load_units(bytes, stride));
        avx512::store(panel.scales + g * kRows, _mm512_castsi512_ps(load_units(bytes, stride)));
    }
}

// dots[t][r] of one group. Two sets of tiles in turn: one is computed while the other is stored.
template <Format format, int kSet>
void multiply_group(const int8_t* x, int64_t cols, const uint8_t* weights, int32_t* dots) {
    // The builtins want literal tile numbers.
    if constexpr (kSet == 0) {
        _tile_zero(0);
        _tile_loadd(2, x, cols);
        _tile_loadd(3, weights, 64);
        if constexpr (format == Format::q4)
            _tile_dpbsud(0, 2, 3);
        else
            _tile_dpbssd(0, 2, 3);
        _tile_stored(0, dots, 64);
    } else {
        _tile_zero(1);
        _tile_loadd(4, x, cols);
        _tile_loadd(5, weights, 64);
        if constexpr (format == Format::q4)
            _tile_dpbsud(1, 4, 5);
        else
            _tile_dpbssd(1, 4, 5);
        _tile_stored(1, dots, 64);
    }
}

// Adds one group's part to the sums of 16 tokens.
template <Format format>
inline void add_group(const Rows& rows, int64_t first_group, int64_t groups, const Panel& panel,
                      int64_t g, const int32_t* dots, __m512 (&acc)[kTokens]) {
    const __m512 scale = avx512::load(panel.scales + g * kRows);
    const float* scales = rows.scales + first_group + g;
    const float* sums = rows.sums + first_group + g;
#pragma GCC unroll 16
    for (int64_t t = 0; t < kTokens; ++t) {
        const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(scales[t * groups]));
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(dots + t * kRows));
        acc[t] = _mm512_fmadd_ps(step, dot, acc[t]);
        if constexpr (format == Format::q4) {
            const __m512 bias = avx512::load(panel.biases + g * kRows);
            acc[t] = _mm512_fmadd_ps(bias, _mm512_set1_ps(sums[t * groups]), acc[t]);
        }
    }
}

// 16 tokens whose rows follow each other, from stored row `row` on.
template <Format format>
void multiply_tokens(const Rows& rows, int64_t row, const Panel& panel, float* y,
                     int64_t stride_y) {
    alignas(64) int32_t dots[2][kTokens * kRows];
    const int64_t groups = rows.cols / kGroup;
    const int8_t* x = rows.codes + row * rows.cols;
    __m512 acc[kTokens];
    for (auto& sum : acc) sum = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; ++g, x += kGroup) {
        const uint8_t* weights = panel.codes + g * kTileBytes;
        if (g % 2 == 0)
            multiply_group<format, 0>(x, rows.cols, weights, dots[0]);
        else
            multiply_group<format, 1>(x, rows.cols, weights, dots[1]);
        add_group<format>(rows, row * groups, groups, panel, g, dots[g % 2], acc);
    }
    for (int64_t t = 0; t < kTokens; ++t) {
        _mm256_storeu_ps(y + t * kBlockRows, _mm512_castps512_ps256(acc[t]));
        _mm256_storeu_ps(y + stride_y + t * kBlockRows, _mm512_extractf32x8_ps(acc[t], 1));
    }
}

// Tiles take 16 rows at one distance, and groups of 64: all else goes to the AVX-512 kernels.
template <Format format, LinearKernels::Dot rest>
void pair(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
          float* y) {
    if (group != kGroup || rows.index || count < kTokens)
        return rest(bytes, group, rows, first, count, y);
    const int64_t groups = rows.cols / kGroup;
    const int64_t stride = MatrixView{format, group, kBlockRows, rows.cols, bytes}.block_bytes();
    const Panel panel(groups);
    (format == Format::q4 ? unpack_q4 : unpack_q8)(bytes, stride, groups, panel);
    const Tiles tiles;
    asm volatile("" ::: "memory");  // GCC does not know what a tile load reads
    const int64_t stride_y = count * kBlockRows;
    // The last tile may do some tokens again: the same bits.
    for (int64_t done = 0; done < count; done += kTokens) {
        const int64_t at = done + kTokens <= count ? done : count - kTokens;
        multiply_tokens<format>(rows, first + at, panel, y + at * kBlockRows, stride_y);
    }
}

}  // namespace

void register_linear_amx(LinearKernels& table) {
    table.pair_q4 = pair<Format::q4, avx512::pair_q4>;
    table.pair_q8 = pair<Format::q8, avx512::pair_q8>;
    table.run_tokens = kTokens;
}

}  // namespace flashmoe
