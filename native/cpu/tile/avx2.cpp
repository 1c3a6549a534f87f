#include "cpu/simd/vector_avx2.h"
#include "cpu/tile/tile.h"

namespace flashmoe {
namespace {

using avx2::kLanes;

// Compilers would load the value again for each use as a memory operand: one load more per FMA.
inline void keep_in_register(__m256& x) { asm("" : "+x"(x)); }

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
        if constexpr (R > 1)
            for (int v = 0; v < V; ++v) keep_in_register(right[v]);
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
void unpacked(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    const int64_t whole = size.m / 4 * 4;
    rows<4, 2>(whole, size.n, size.k, a, b, c, accumulate);
    a.data += whole * a.row;
    c.data += whole * c.row;
    rows<1, 8>(size.m - whole, size.n, size.k, a, b, c, accumulate);
}

constexpr int64_t kColumns = 2 * kLanes;  // of a packed panel of b
constexpr int64_t kDepth = 128;           // its rows at most: 8 KiB
constexpr int64_t kPackRows = 16;         // fewer rows of c do not pay for the copy

// Rows of b that lie a power of two apart fall into few sets of L1: a copy does not.
Operand pack(int64_t k, Operand b, float* packed) {
    for (int64_t p = 0; p < k; ++p)
        for (int64_t j = 0; j < kColumns; j += kLanes)
            _mm256_storeu_ps(packed + p * kColumns + j, avx2::load(b.data + p * b.row + j));
    return {packed, kColumns};
}

// The columns that fill whole panels go through a copy, in pieces of k; the others as they lie.
void packed(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    alignas(64) float copy[kDepth * kColumns];
    const int64_t whole = size.n / kColumns * kColumns;
    for (int64_t p = 0; p < size.k; p += kDepth)
        for (int64_t j = 0; j < whole; j += kColumns) {
            const int64_t k = size.k - p < kDepth ? size.k - p : kDepth;
            const Operand right = pack(k, {b.data + p * b.row + j, b.row}, copy);
            unpacked({size.m, kColumns, k}, {a.data + p * a.col, a.row, a.col}, right,
                     {c.data + j, c.row}, accumulate || p > 0);
        }
    unpacked({size.m, size.n - whole, size.k}, a, {b.data + whole, b.row}, {c.data + whole, c.row},
             accumulate);
}

void matmul(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    (size.m >= kPackRows ? packed : unpacked)(size, a, b, c, accumulate);
}

// Four elements from each of two rows, the first row in the low half.
inline __m256 load_pair(const float* low, const float* high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}
inline __m256 load_pair(const uint16_t* low, const uint16_t* high) {
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(_mm_loadu_si64(low), _mm_loadu_si64(high)));
}

// dst[d * width + i] = src[i * row + d] for i < 8, d < 4.
template <typename T>
inline void transpose_8x4(const T* src, int64_t row, float* dst, int64_t width) {
    __m256 x[4];
    for (int i = 0; i < 4; ++i) x[i] = load_pair(src + i * row, src + (i + 4) * row);
    const __m256d even[2] = {_mm256_castps_pd(_mm256_unpacklo_ps(x[0], x[1])),
                             _mm256_castps_pd(_mm256_unpackhi_ps(x[0], x[1]))};
    const __m256d odd[2] = {_mm256_castps_pd(_mm256_unpacklo_ps(x[2], x[3])),
                            _mm256_castps_pd(_mm256_unpackhi_ps(x[2], x[3]))};
    for (int i = 0; i < 2; ++i) {
        const __m256d first = _mm256_unpacklo_pd(even[i], odd[i]);
        const __m256d second = _mm256_unpackhi_pd(even[i], odd[i]);
        _mm256_storeu_ps(dst + 2 * i * width, _mm256_castpd_ps(first));
        _mm256_storeu_ps(dst + (2 * i + 1) * width, _mm256_castpd_ps(second));
    }
}

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return _cvtsh_ss(x); }

// The rows of a transposition from first_row on, and of those the columns from first_dim on.
template <typename T>
void transpose_edge(const T* src, int64_t row, int64_t count, int64_t dim, int64_t first_row,
                    int64_t first_dim, float* dst, int64_t width) {
    for (int64_t d = first_dim; d < dim; ++d)
        for (int64_t j = first_row; j < width; ++j)
            dst[d * width + j] = j < count ? widen(src[j * row + d]) : 0.0f;
}

// Brings a line into L2, where it does not displace what is being worked on. Any address will do.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// The eight rows from src, and a request for the same rows of the next block of `width`.
template <typename T>
void transpose_rows(const T* src, int64_t row, int64_t dim, float* dst, int64_t width) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t d = 0; d < dim; d += 4) {
        if (d % kLine == 0)
            for (int i = 0; i < 8; ++i) prefetch(src + (width + i) * row + d);
        transpose_8x4(src + d, row, dst + d * width, width);
    }
}

template <typename T>
void transpose(const T* src, int64_t row, int64_t count, int64_t dim, float* dst, int64_t width) {
    const int64_t whole_rows = count / 8 * 8, whole_dims = dim / 4 * 4;
    for (int64_t j = 0; j < whole_rows; j += 8)
        transpose_rows(src + j * row, row, whole_dims, dst + j, width);
    transpose_edge(src, row, count, whole_dims, whole_rows, 0, dst, width);
    transpose_edge(src, row, count, dim, 0, whole_dims, dst, width);
}

void from_half(const uint16_t* src, int64_t n, float* dst) {
    avx2::for_vectors(
        n,
        [&](int64_t i) {
            prefetch(src + n + i);
            _mm256_storeu_ps(dst + i, avx2::load(src + i));
        },
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
