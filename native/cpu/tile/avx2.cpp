#include "cpu/simd/vector_avx2.h"
#include "cpu/tile/tile.h"

namespace flashmoe {
namespace {

using avx2::kLanes;

// R rows by V vectors of c, held in registers over all of k.
template <int R, int V>
void tile(int64_t k, Operand a, Operand b, Panel c, bool accumulate) {
    __m256 sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v)
            sum[r][v] =
                accumulate ? avx2::load(c.data + r * c.row + v * kLanes) : _mm256_setzero_ps();
    for (int64_t p = 0; p < k; ++p) {
        __m256 right[V];
        for (int v = 0; v < V; ++v) right[v] = avx2::load(b.data + p * b.row + v * kLanes);
        for (int r = 0; r < R; ++r) {
            const __m256 left = _mm256_broadcast_ss(a.data + r * a.row + p * a.col);
            for (int v = 0; v < V; ++v) sum[r][v] = _mm256_fmadd_ps(left, right[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) _mm256_storeu_ps(c.data + r * c.row + v * kLanes, sum[r][v]);
}

// R rows by the last `count` (< 8) columns of c.
template <int R>
void tile_tail(int64_t k, Operand a, Operand b, Panel c, bool accumulate, int64_t count) {
    __m256 sum[R];
    for (int r = 0; r < R; ++r)
        sum[r] = accumulate ? avx2::load_first(c.data + r * c.row, count) : _mm256_setzero_ps();
    for (int64_t p = 0; p < k; ++p) {
        const __m256 right = avx2::load_first(b.data + p * b.row, count);
        for (int r = 0; r < R; ++r) {
            const __m256 left = _mm256_broadcast_ss(a.data + r * a.row + p * a.col);
            sum[r] = _mm256_fmadd_ps(left, right, sum[r]);
        }
    }
    for (int r = 0; r < R; ++r) avx2::store_first(c.data + r * c.row, count, sum[r]);
}

// All columns of m rows (a multiple of R), column panels outside: a panel of b stays in L1.
template <int R, int V>
void rows(int64_t m, int64_t n, int64_t k, Operand a, Operand b, Panel c, bool accumulate) {
    const auto each = [&](int64_t j, auto kernel) {
        const Operand right{b.data + j, b.row};
        for (int64_t i = 0; i < m; i += R)
            kernel(Operand{a.data + i * a.row, a.row, a.col}, right,
                   Panel{c.data + i * c.row + j, c.row});
    };
    int64_t j = 0;
    for (; j + V * kLanes <= n; j += V * kLanes)
        each(j, [&](Operand x, Operand y, Panel z) { tile<R, V>(k, x, y, z, accumulate); });
    for (; j + kLanes <= n; j += kLanes)
        each(j, [&](Operand x, Operand y, Panel z) { tile<R, 1>(k, x, y, z, accumulate); });
    if (j < n)
        each(j,
             [&](Operand x, Operand y, Panel z) { tile_tail<R>(k, x, y, z, accumulate, n - j); });
}

// Eight accumulators in either shape: what two FMA pipes of latency 4 need.
void matmul(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    const int64_t whole = size.m / 4 * 4;
    rows<4, 2>(whole, size.n, size.k, a, b, c, accumulate);
    a.data += whole * a.row;
    c.data += whole * c.row;
    rows<1, 8>(size.m - whole, size.n, size.k, a, b, c, accumulate);
}

void transpose_8x8(__m256 (&x)[8]) {
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        x[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        x[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
}

template <typename T>
void transpose(const T* src, int64_t row, int64_t count, int64_t dim, float* dst, int64_t width) {
    for (int64_t j = 0; j < width; j += kLanes)
        for (int64_t d = 0; d < dim; d += kLanes) {
            const int64_t depth = dim - d;
            __m256 x[8];
            for (int64_t i = 0; i < 8; ++i) {
                const T* source = src + (j + i) * row + d;
                x[i] = j + i >= count    ? _mm256_setzero_ps()
                       : depth >= kLanes ? avx2::load(source)
                                         : avx2::load_first(source, depth);
            }
            transpose_8x8(x);
            for (int64_t i = 0; i < 8 && i < depth; ++i)
                _mm256_storeu_ps(dst + (d + i) * width + j, x[i]);
        }
}

void from_half(const uint16_t* src, int64_t n, float* dst) {
    avx2::for_vectors(
        n, [&](int64_t i) { _mm256_storeu_ps(dst + i, avx2::load(src + i)); },
        [&](int64_t i, int64_t count) {
            avx2::store_first(dst + i, count, avx2::load_first(src + i, count));
        });
}

__m128i narrow(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

void to_half(const float* src, int64_t n, uint16_t* dst) {
    avx2::for_vectors(
        n,
        [&](int64_t i) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), narrow(avx2::load(src + i)));
        },
        [&](int64_t i, int64_t count) {
            uint16_t padded[kLanes];
            _mm_storeu_si128(reinterpret_cast<__m128i*>(padded),
                             narrow(avx2::load_first(src + i, count)));
            std::memcpy(dst + i, padded, count * sizeof(uint16_t));
        });
}

}  // namespace

void register_tile_avx2(TileKernels& table) {
    table = {matmul, transpose<float>, transpose<uint16_t>, from_half, to_half};
}

}  // namespace flashmoe
