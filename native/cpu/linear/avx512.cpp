// One lane per weight row: 8 of one block in 256 bits, or 16 of two adjacent blocks in 512 bits.
// Sums of codes are exact, and the float operations of a row are the same in both widths and for
// every tile of tokens: a row's result does not depend on how it is computed.
#include "cpu/linear/avx512.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

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

void prefetch(const uint8_t* bytes) {
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

template <typename V, int kTokens, int kGroup>
void q4_tile(const uint8_t* bytes, const Call& call) {
    using Int = typename V::Int;
    const Tile<kTokens> tile(call.rows, kGroup, call.first);
    typename V::Float acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g) {
        Int dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = V::all(0);
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; c += 8, bytes += 32) {
            if (kTokens == 1 && c % 16 == 0) prefetch(bytes);
            const Int units = V::load(bytes, call.stride_bytes);
            const Int low = units & V::all(0x0F0F0F0F), high = V::high_nibbles(units);
            for (int t = 0; t < kTokens; ++t) {
                const int8_t* x = tile.codes[t] + g * kGroup + c;
                dot[t] = V::dot(dot[t], low, broadcast_codes<V>(x));
                dot[t] = V::dot(dot[t], high, broadcast_codes<V>(x + 4));
            }
        }
        const auto scale = V::bf16(bytes, call.stride_bytes);
        const auto bias = V::bf16(bytes + 16, call.stride_bytes);
        bytes += 32;
        for (int t = 0; t < kTokens; ++t) {
            const auto step = scale * V::all(tile.scales[t][g]);
            acc[t] = V::multiply_add(step, V::floats(dot[t]), acc[t]);
            acc[t] = V::multiply_add(bias, V::all(tile.sums[t][g]), acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) V::store(call.y + t * kBlockRows, call.stride_y, acc[t]);
}

// The dot product takes unsigned weights: code + 128, and the sum starts at -128 * sum(x).
template <typename V, int kTokens, int kGroup>
void q8_tile(const uint8_t* bytes, const Call& call) {
    using Int = typename V::Int;
    const Tile<kTokens> tile(call.rows, kGroup, call.first);
    typename V::Float acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = V::all(0.0f);
    for (int64_t g = 0; g < call.rows.cols / kGroup; ++g) {
        Int dot[kTokens];
        for (int t = 0; t < kTokens; ++t) dot[t] = V::all(tile.offsets[t][g]);
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; c += 4, bytes += 32) {
            if (kTokens == 1 && c % 8 == 0) prefetch(bytes);
            const Int units = V::load(bytes, call.stride_bytes);
            const Int weight = units ^ V::all(static_cast<int32_t>(0x80808080));
            for (int t = 0; t < kTokens; ++t)
                dot[t] = V::dot(dot[t], weight, broadcast_codes<V>(tile.codes[t] + g * kGroup + c));
        }
        const auto scale = V::as_floats(V::load(bytes, call.stride_bytes));
        bytes += 32;
        for (int t = 0; t < kTokens; ++t) {
            const auto step = scale * V::all(tile.scales[t][g]);
            acc[t] = V::multiply_add(step, V::floats(dot[t]), acc[t]);
        }
    }
    for (int t = 0; t < kTokens; ++t) V::store(call.y + t * kBlockRows, call.stride_y, acc[t]);
}

// acc[0] and acc[1] take the even and odd column of one unit.
template <typename V, int kTokens>
void bf16_unit(typename V::Int units, const float* const (&x)[kTokens], int64_t column,
               typename V::Float (*acc)[kTokens]) {
    const auto even = V::as_floats(V::upper_half(units));
    const auto odd = V::as_floats(units & V::all(static_cast<int32_t>(0xFFFF0000)));
    for (int t = 0; t < kTokens; ++t) {
        acc[0][t] = V::multiply_add(even, V::all(x[t][column]), acc[0][t]);
        acc[1][t] = V::multiply_add(odd, V::all(x[t][column + 1]), acc[1][t]);
    }
}

// Four accumulators per token hide the latency of FMA when there is only one token.
template <typename V, int kTokens>
void bf16_tile(const uint8_t* bytes, const Call& call) {
    const float* x[kTokens];
    typename V::Float acc[4][kTokens];
    for (int t = 0; t < kTokens; ++t) {
        x[t] = call.rows.x + call.rows.at(call.first + t) * call.rows.cols;
        for (auto& part : acc) part[t] = V::all(0.0f);
    }
    int64_t c = 0;
    for (; c + 4 <= call.rows.cols; c += 4, bytes += 64) {
        if (kTokens == 1) prefetch(bytes);
        bf16_unit<V, kTokens>(V::load(bytes, call.stride_bytes), x, c, acc);
        bf16_unit<V, kTokens>(V::load(bytes + 32, call.stride_bytes), x, c + 2, acc + 2);
    }
    if (c < call.rows.cols) bf16_unit<V, kTokens>(V::load(bytes, call.stride_bytes), x, c, acc);
    for (int t = 0; t < kTokens; ++t)
        V::store(call.y + t * kBlockRows, call.stride_y,
                 (acc[0][t] + acc[1][t]) + (acc[2][t] + acc[3][t]));
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

template <int kGroup>
constexpr TileKernel kQ4[] = {q4_tile<One, 1, kGroup>, q4_tile<One, 2, kGroup>,
                              q4_tile<One, 3, kGroup>, q4_tile<One, 4, kGroup>};
template <int kGroup>
constexpr TileKernel kQ8[] = {q8_tile<One, 1, kGroup>, q8_tile<One, 2, kGroup>,
                              q8_tile<One, 3, kGroup>, q8_tile<One, 4, kGroup>};
constexpr TileKernel kBf16[] = {bf16_tile<One, 1>, bf16_tile<One, 2>, bf16_tile<One, 3>,
                                bf16_tile<One, 4>};
template <int kGroup>
constexpr TileKernel kPairQ4[] = {q4_tile<Two, 1, kGroup>, q4_tile<Two, 2, kGroup>,
                                  q4_tile<Two, 3, kGroup>, q4_tile<Two, 4, kGroup>,
                                  q4_tile<Two, 5, kGroup>, q4_tile<Two, 6, kGroup>,
                                  q4_tile<Two, 7, kGroup>, q4_tile<Two, 8, kGroup>};
template <int kGroup>
constexpr TileKernel kPairQ8[] = {q8_tile<Two, 1, kGroup>, q8_tile<Two, 2, kGroup>,
                                  q8_tile<Two, 3, kGroup>, q8_tile<Two, 4, kGroup>,
                                  q8_tile<Two, 5, kGroup>, q8_tile<Two, 6, kGroup>,
                                  q8_tile<Two, 7, kGroup>, q8_tile<Two, 8, kGroup>};
constexpr TileKernel kPairBf16[] = {bf16_tile<Two, 1>, bf16_tile<Two, 2>, bf16_tile<Two, 3>,
                                    bf16_tile<Two, 4>, bf16_tile<Two, 5>, bf16_tile<Two, 6>};

void dot_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const auto& tiles = group == 32 ? kQ4<32> : group == 64 ? kQ4<64> : kQ4<128>;
    run_tiles(tiles, bytes, {rows, first, 0, y, 0}, count);
}

void dot_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
            float* y) {
    const auto& tiles = group == 32 ? kQ8<32> : group == 64 ? kQ8<64> : kQ8<128>;
    run_tiles(tiles, bytes, {rows, first, 0, y, 0}, count);
}

void dot_bf16(const uint8_t* bytes, int64_t, const Rows& rows, int64_t first, int64_t count,
              float* y) {
    run_tiles(kBf16, bytes, {rows, first, 0, y, 0}, count);
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

__m512i largest_bits(const float* x, int64_t n) {
    // Compared as integers, so that NaN counts as the largest of all.
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += avx512::kLanes) {
        const __m512i bits = _mm512_loadu_si512(x + i) & _mm512_set1_epi32(0x7FFFFFFF);
        largest = _mm512_max_epi32(largest, bits);
    }
    return largest;
}

// Writes codes round(x * inverse) and returns their sum.
int32_t round_codes(const float* x, float inverse, int64_t n, int8_t* codes) {
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += avx512::kLanes) {
        const __m512i wide =
            _mm512_cvtps_epi32(_mm512_mul_ps(avx512::load(x + i), _mm512_set1_ps(inverse)));
        total = _mm512_add_epi32(total, wide);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(wide));
    }
    return _mm512_reduce_add_epi32(total);
}

void quantize(const float* x, int64_t group, int8_t* codes, float* scale, float* sum) {
    const int32_t bits = _mm512_reduce_max_epi32(largest_bits(x, group));
    float amax;
    std::memcpy(&amax, &bits, sizeof(amax));
    const float inverse = 127.0f / amax;
    *scale = std::isinf(inverse) ? 0.0f : amax / 127.0f;
    if (std::isfinite(inverse) && inverse > 0) {
        *sum = *scale * static_cast<float>(round_codes(x, inverse, group, codes));
    } else {
        std::memset(codes, 0, static_cast<size_t>(group));
        *sum = *scale;
    }
}

void silu_mul(const float* gate, const float* up, float* out, int64_t n) {
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m512 g = avx512::load(gate + i, mask), u = avx512::load(up + i, mask);
        avx512::store(out + i, _mm512_mul_ps(avx512::silu(g), u), mask);
    });
}

}  // namespace

namespace avx512 {

void pair_q4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
             float* y) {
    const auto& tiles = group == 32 ? kPairQ4<32> : group == 64 ? kPairQ4<64> : kPairQ4<128>;
    pair<dot_q4, Format::q4>(tiles, bytes, group, rows, first, count, y);
}

void pair_q8(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
             float* y) {
    const auto& tiles = group == 32 ? kPairQ8<32> : group == 64 ? kPairQ8<64> : kPairQ8<128>;
    pair<dot_q8, Format::q8>(tiles, bytes, group, rows, first, count, y);
}

void pair_bf16(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
               float* y) {
    pair<dot_bf16, Format::bf16>(kPairBf16, bytes, group, rows, first, count, y);
}

}  // namespace avx512

void register_linear_avx512(LinearKernels& table) {
    table.dot_bf16 = dot_bf16;
    table.dot_q8 = dot_q8;
    table.dot_q4 = dot_q4;
    table.pair_bf16 = avx512::pair_bf16;
    table.pair_q8 = avx512::pair_q8;
    table.pair_q4 = avx512::pair_q4;
    table.quantize = quantize;
    table.silu_mul = silu_mul;
}

}  // namespace flashmoe
