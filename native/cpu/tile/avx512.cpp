#include "cpu/simd/vector_avx512.h"
#include "cpu/tile/tile.h"

namespace flashmoe {
namespace {

using avx512::kAll;
using avx512::kLanes;

constexpr int64_t kColumns = 2 * kLanes;  // of a panel of b
constexpr int64_t kDepth = 128;           // rows of a packed panel: 16 KiB, half of a small L1
constexpr int64_t kPackRows = 16;         // fewer rows of c do not pay for the copy

// Compilers would load the value again for each use as a memory operand: one load more per FMA.
inline void keep_in_register(__m512& x) { asm("" : "+v"(x)); }

// R rows by V vectors of c, held in registers over all of k. Of the last vector only the lanes of
// `last` exist. The pragmas keep the sums out of memory.
template <int R, int V>
void tile(int64_t k, Operand a, Operand b, Panel c, bool accumulate, __mmask16 last) {
    __m512 sum[R][V];
    const auto mask = [&](int v) { return v == V - 1 ? last : kAll; };
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            sum[r][v] = accumulate ? avx512::load(c.data + r * c.row + v * kLanes, mask(v))
                                   : _mm512_setzero_ps();
    for (int64_t p = 0; p < k; ++p) {
        __m512 right[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            right[v] = avx512::load(b.data + p * b.row + v * kLanes, mask(v));
            keep_in_register(right[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512 left = _mm512_set1_ps(a.data[r * a.row + p * a.col]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = _mm512_fmadd_ps(left, right[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            avx512::store(c.data + r * c.row + v * kLanes, sum[r][v], mask(v));
}

// One panel of at most 32 columns: all of its rows, eight at a time, then fewer.
template <int V>
void panel(int64_t m, int64_t k, Operand a, Operand b, Panel c, bool accumulate, __mmask16 last) {
    const auto rows = [&](int64_t count, auto kernel) {
        for (; m >= count; m -= count, a.data += count * a.row, c.data += count * c.row)
            kernel(k, a, b, c, accumulate, last);
    };
    rows(8, tile<8, V>);
    rows(4, tile<4, V>);
    rows(1, tile<1, V>);
}

void panel(int64_t m, int64_t n, int64_t k, Operand a, Operand b, Panel c, bool accumulate) {
    if (n > kLanes)
        panel<2>(m, k, a, b, c, accumulate, avx512::first_lanes(n - kLanes));
    else
        panel<1>(m, k, a, b, c, accumulate, avx512::first_lanes(n));
}

// Rows of b that lie a power of two apart fall into few sets of L1: a copy does not.
Operand pack(int64_t n, int64_t k, Operand b, float* packed) {
    for (int64_t p = 0; p < k; ++p)
        for (int64_t j = 0; j < n; j += kLanes) {
            const __mmask16 mask = n - j < kLanes ? avx512::first_lanes(n - j) : kAll;
            avx512::store(packed + p * kColumns + j, avx512::load(b.data + p * b.row + j, mask));
        }
    return {packed, kColumns};
}

// Many rows: each panel of b is copied once for all of them.
void many_rows(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    alignas(64) float packed[kDepth * kColumns];
    for (int64_t p = 0; p < size.k; p += kDepth)
        for (int64_t j = 0; j < size.n; j += kColumns) {
            const int64_t n = size.n - j < kColumns ? size.n - j : kColumns;
            const int64_t k = size.k - p < kDepth ? size.k - p : kDepth;
            const Operand right = pack(n, k, {b.data + p * b.row + j, b.row}, packed);
            panel(size.m, n, k, {a.data + p * a.col, a.row, a.col}, right, {c.data + j, c.row},
                  accumulate || p > 0);
        }
}

// Few rows: wide tiles, so that one row has sums enough to hide the latency of FMA.
void few_rows(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    int64_t j = 0;
    if (size.m < 4)
        for (; j + 4 * kLanes <= size.n; j += 4 * kLanes)
            panel<4>(size.m, size.k, a, {b.data + j, b.row}, {c.data + j, c.row}, accumulate, kAll);
    for (; j < size.n; j += kColumns)
        panel(size.m, size.n - j < kColumns ? size.n - j : kColumns, size.k, a, {b.data + j, b.row},
              {c.data + j, c.row}, accumulate);
}

void matmul(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    if (size.m >= kPackRows)
        many_rows(size, a, b, c, accumulate);
    else
        few_rows(size, a, b, c, accumulate);
}

}  // namespace

void register_tile_avx512(TileKernels& table) { table.matmul = matmul; }

}  // namespace flashmoe
