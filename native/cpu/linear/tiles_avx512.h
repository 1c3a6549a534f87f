// One or two 8-row blocks of weights, and tiles of tokens that share their loads: what the AVX-512
// products of all formats have in common.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/linear/linear.h"

namespace flashmoe::avx512 {

// As in the AVX2 kernels.
constexpr int64_t kPrefetchBytes = 6144;

// Below that many tokens the blocks go one by one: their bytes then are one stream.
constexpr int64_t kPairTokens = 4;

// The 8 rows of a block; stride is not used.
struct One {
    using Int = __m256i;
    using Float = __m256;
    static constexpr int kTile = 4;

    static Int load(const uint8_t* p, int64_t) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static Float bf16(const uint8_t* p, int64_t) {
        const auto half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    // Eight scale bytes as powers of two; byte 0 is 2^-127, a denormal.
    static Float e8m0(const uint8_t* p, int64_t) {
        const Int bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadu_si64(p)), 23);
        return as_floats(_mm256_max_epi32(bits, all(0x00400000)));
    }
    // table[x] for each byte x < 16.
    static Int look_up(__m128i table, Int x) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), x);
    }
    static Int all(int32_t x) { return _mm256_set1_epi32(x); }
    static Float all(float x) { return _mm256_set1_ps(x); }
    static Int high_nibbles(Int x) { return _mm256_srli_epi16(x, 4) & all(0x0F0F0F0F); }
    static Int upper_half(Int x) { return _mm256_slli_epi32(x, 16); }
    static Int dot(Int sum, Int w, Int x) { return _mm256_dpbusd_epi32(sum, w, x); }
    static Float floats(Int x) { return _mm256_cvtepi32_ps(x); }
    static Float as_floats(Int x) { return _mm256_castsi256_ps(x); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static void store(float* y, int64_t, Float x) { _mm256_storeu_ps(y, x); }
};

// The 16 rows of two blocks that lie `stride` bytes apart; results `stride` floats apart.
struct Two {
    using Int = __m512i;
    using Float = __m512;
    static constexpr int kTile = 8;

    static Int load(const uint8_t* p, int64_t stride) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(One::load(p, 0)), One::load(p + stride, 0),
                                  1);
    }
    static Float bf16(const uint8_t* p, int64_t stride) {
        return _mm512_insertf32x8(_mm512_castps256_ps512(One::bf16(p, 0)), One::bf16(p + stride, 0),
                                  1);
    }
    static Float e8m0(const uint8_t* p, int64_t stride) {
        return _mm512_insertf32x8(_mm512_castps256_ps512(One::e8m0(p, 0)), One::e8m0(p + stride, 0),
                                  1);
    }
    static Int look_up(__m128i table, Int x) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), x);
    }
    static Int all(int32_t x) { return _mm512_set1_epi32(x); }
    static Float all(float x) { return _mm512_set1_ps(x); }
    static Int high_nibbles(Int x) { return _mm512_srli_epi16(x, 4) & all(0x0F0F0F0F); }
    static Int upper_half(Int x) { return _mm512_slli_epi32(x, 16); }
    static Int dot(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static Float floats(Int x) { return _mm512_cvtepi32_ps(x); }
    static Float as_floats(Int x) { return _mm512_castsi512_ps(x); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static void store(float* y, int64_t stride, Float x) {
        _mm256_storeu_ps(y, _mm512_castps512_ps256(x));
        _mm256_storeu_ps(y + stride, _mm512_extractf32x8_ps(x, 1));
    }
};

inline void prefetch(const uint8_t* bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetchBytes), _MM_HINT_T0);
}

// What the kernels know of a block beside its bytes, and where tokens and results are.
struct Call {
    const Rows& rows;
    int64_t first;         // token of the tile
    int64_t stride_bytes;  // between two blocks
    float* y;
    int64_t stride_y;
};

// Codes, scales, sums and offsets of the kTokens activation rows of a tile.
template <int kTokens>
struct Tile {
    const int8_t* codes[kTokens];
    const float* scales[kTokens];
    const float* sums[kTokens];
    const int32_t* offsets[kTokens];

    Tile(const Rows& rows, int64_t group, int64_t first) {
        const int64_t groups = rows.cols / group;
        for (int t = 0; t < kTokens; ++t) {
            const int64_t row = rows.at(first + t);
            codes[t] = rows.codes + row * rows.cols;
            scales[t] = rows.scales + row * groups;
            sums[t] = rows.sums + row * groups;
            offsets[t] = rows.offsets + row * groups;
        }
    }
};

// The same 4 activation codes in every lane.
template <typename V>
typename V::Int broadcast_codes(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    return V::all(four);
}

using TileKernel = void (*)(const uint8_t*, const Call&);

// kernels[n - 1] handles n tokens.
template <int kTile>
void run_tiles(const TileKernel (&kernels)[kTile], const uint8_t* bytes, Call call, int64_t count) {
    const int64_t end = call.first + count;
    for (; call.first < end; call.first += kTile, call.y += kTile * kBlockRows) {
        const int64_t tokens = end - call.first < kTile ? end - call.first : kTile;
        kernels[tokens - 1](bytes, call);
    }
}

// Two blocks: side by side if the tokens are worth it, else one after the other.
template <LinearKernels::Dot one, Format format, int kTile>
void pair(const TileKernel (&tiles)[kTile], const uint8_t* bytes, int64_t group, const Rows& rows,
          int64_t first, int64_t count, float* y) {
    const int64_t stride = MatrixView{format, group, kBlockRows, rows.cols, bytes}.block_bytes();
    if (count >= kPairTokens)
        return run_tiles(tiles, bytes, {rows, first, stride, y, count * kBlockRows}, count);
    one(bytes, group, rows, first, count, y);
    one(bytes + stride, group, rows, first, count, y + count * kBlockRows);
}

}  // namespace flashmoe::avx512
