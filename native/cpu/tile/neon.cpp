#include <algorithm>

#include "cpu/simd/vector_neon.h"
#include "cpu/tile/tile.h"

namespace flashmoe {
namespace {

using neon::kLanes;

// R rows by V vectors of c, held in registers over all of k. Lanes moves one vector.
template <int R, int V, typename Lanes>
void tile(int64_t k, Operand a, Operand b, Panel c, bool accumulate, Lanes lanes) {
    float32x4_t sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v)
            sum[r][v] =
                accumulate ? lanes.load(c.data + r * c.row + v * kLanes) : vdupq_n_f32(0.0f);
    for (int64_t p = 0; p < k; ++p) {
        float32x4_t right[V];
        for (int v = 0; v < V; ++v) right[v] = lanes.load(b.data + p * b.row + v * kLanes);
        for (int r = 0; r < R; ++r) {
            const float left = a.data[r * a.row + p * a.col];
            for (int v = 0; v < V; ++v) sum[r][v] = vfmaq_n_f32(sum[r][v], right[v], left);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) lanes.store(c.data + r * c.row + v * kLanes, sum[r][v]);
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
            tile<R, V>(k, x, y, z, accumulate, neon::Whole{});
        });
    neon::for_vectors(n - j, [&](int64_t i, auto lanes) {
        each(j + i,
             [&](Operand x, Operand y, Panel z) { tile<R, 1>(k, x, y, z, accumulate, lanes); });
    });
}

// Of 32 registers the wide shape takes 16 for sums and 4 for a row of b; the narrow one needs 8
// independent sums to hide the latency of FMA.
void matmul(Extent size, Operand a, Operand b, Panel c, bool accumulate) {
    const int64_t whole = size.m / 4 * 4;
    rows<4, 4>(whole, size.n, size.k, a, b, c, accumulate);
    a.data += whole * a.row;
    c.data += whole * c.row;
    rows<1, 8>(size.m - whole, size.n, size.k, a, b, c, accumulate);
}

float32x4_t join(float64x2_t x) { return vreinterpretq_f32_f64(x); }
float64x2_t pairs(float32x4_t x) { return vreinterpretq_f64_f32(x); }

// dst[d * width + i] = src[i * row + d] for i < 4, d < 4.
template <typename T>
inline void transpose_4x4(const T* src, int64_t row, float* dst, int64_t width) {
    float32x4_t x[4];
    for (int i = 0; i < 4; ++i) x[i] = neon::load(src + i * row);
    const float64x2_t even[2] = {pairs(vtrn1q_f32(x[0], x[1])), pairs(vtrn1q_f32(x[2], x[3]))};
    const float64x2_t odd[2] = {pairs(vtrn2q_f32(x[0], x[1])), pairs(vtrn2q_f32(x[2], x[3]))};
    vst1q_f32(dst, join(vtrn1q_f64(even[0], even[1])));
    vst1q_f32(dst + width, join(vtrn1q_f64(odd[0], odd[1])));
    vst1q_f32(dst + 2 * width, join(vtrn2q_f64(even[0], even[1])));
    vst1q_f32(dst + 3 * width, join(vtrn2q_f64(odd[0], odd[1])));
}

// The rows of a transposition from first_row on, and of those the columns from first_dim on.
template <typename T>
void transpose_edge(const T* src, int64_t row, int64_t count, int64_t dim, int64_t first_row,
                    int64_t first_dim, float* dst, int64_t width) {
    for (int64_t d = first_dim; d < dim; ++d)
        for (int64_t j = first_row; j < width; ++j)
            dst[d * width + j] =
                j < count ? vgetq_lane_f32(neon::First{1}.load(src + j * row + d), 0) : 0.0f;
}

template <typename T>
void transpose(const T* src, int64_t row, int64_t count, int64_t dim, float* dst, int64_t width) {
    const int64_t whole_rows = count / 4 * 4, whole_dims = dim / 4 * 4;
    for (int64_t j = 0; j < whole_rows; j += 4)
        for (int64_t d = 0; d < whole_dims; d += 4)
            transpose_4x4(src + j * row + d, row, dst + d * width + j, width);
    transpose_edge(src, row, count, whole_dims, whole_rows, 0, dst, width);
    transpose_edge(src, row, count, dim, 0, whole_dims, dst, width);
}

void from_half(const uint16_t* src, int64_t n, float* dst) {
    neon::for_vectors(n, [&](int64_t i, auto lanes) { lanes.store(dst + i, lanes.load(src + i)); });
}

void to_half(const float* src, int64_t n, uint16_t* dst) {
    neon::for_vectors(n, [&](int64_t i, auto lanes) {
        uint16_t halves[kLanes];
        vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(lanes.load(src + i))));
        std::memcpy(dst + i, halves, std::min(kLanes, n - i) * sizeof(uint16_t));
    });
}

}  // namespace

void register_tile_neon(TileKernels& table) {
    table = {matmul, transpose<float>, transpose<uint16_t>, from_half, to_half};
}

}  // namespace flashmoe
