#include "cpu/simd/vector_avx512.h"
#include "cpu/tile/tile.h"

namespace flashmoe {
namespace {

using avx512::kLanes;

// R rows by V vectors of c, held in registers over all of k. mask: lanes of the last vector.
template <int R, int V>
void tile(int64_t k, Operand a, Operand b, Panel c, bool accumulate, __mmask16 mask) {
    const auto lanes = [mask](int v) { return v == V - 1 ? mask : avx512::kAll; };
    __m512 sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v)
            sum[r][v] = accumulate ? avx512::load(c.data + r * c.row + v * kLanes, lanes(v))
                                   : _mm512_setzero_ps();
    for (int64_t p = 0; p < k; ++p) {
        __m512 right[V];
        for (int v = 0; v < V; ++v)
            right[v] = avx512::load(b.data + p * b.row + v * kLanes, lanes(v));
        for (int r = 0; r < R; ++r) {
            const __m512 left = _mm512_set1_ps(a.data[r * a.row + p * a.col]);
            for (int v = 0; v < V; ++v) sum[r][v] = _mm512_fmadd_ps(left, right[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v)
            avx512::store(c.data + r * c.row + v * kLanes, sum[r][v], lanes(v));
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
        each(j, [&](Operand x, Operand y, Panel z) {
            tile<R, V>(k, x, y, z, accumulate, avx512::kAll);
        });
    for (; j < n; j += kLanes)
        each(j, [&](Operand x, Operand y, Panel z) {
            const auto mask = n - j < kLanes ? avx512::first_lanes(n - j) : avx512::kAll;
            tile<R, 1>(k, x, y, z, accumulate, mask);
        });
}

// Enough accumulators in each shape for two FMA pipes of latency 4.
void matmul(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    const auto some = [&](int64_t count, auto kernel) {
        kernel(count, size.n, size.k, a, b, c, accumulate);
        a.data += count * a.row;
        c.data += count * c.row;
        size.m -= count;
    };
    some(size.m / 8 * 8, rows<8, 2>);
    some(size.m / 4 * 4, rows<4, 4>);
    some(size.m, rows<1, 8>);
}

// Brings a line into L2, where it does not displace what is being worked on. Any address will do.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

void from_half(const uint16_t* src, int64_t n, float* dst) {
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        prefetch(src + n + i);
        avx512::store(dst + i, avx512::load(src + i, mask), mask);
    });
}

void to_half(const float* src, int64_t n, uint16_t* dst) {
    avx512::for_vectors(n, [&](int64_t i, __mmask16 mask) {
        const __m256i half =
            _mm512_cvtps_ph(avx512::load(src + i, mask), _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(dst + i, mask, half);
    });
}

}  // namespace

// The transpositions stay those of AVX2: they wait for loads.
void register_tile_avx512(TileKernels& table) {
    table.matmul = matmul;
    table.from_half = from_half;
    table.to_half = to_half;
}

}  // namespace flashmoe
