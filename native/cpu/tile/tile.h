// Small dense products on float32 panels that fit a near cache: the core of attention and of the
// chunked delta rule. No threads.
#pragma once

#include <cstdint>

namespace flashmoe {

struct Extent {
    int64_t m, n, k;
};

// Element (i, j) at data[i * row + j * col].
struct Operand {
    const float* data;
    int64_t row;
    int64_t col = 1;
};

// Rows of contiguous floats, `row` apart.
struct Panel {
    float* data;
    int64_t row;
};

struct TileKernels {
    // c [m, n] = a [m, k] b [k, n], added to c if accumulate. b.col must be 1. Every element is
    // summed in ascending order of k, whatever m and n are.
    void (*matmul)(Extent size, Operand a, Operand b, Panel c, bool accumulate);

    // dst[d * width + j] = src[j * row + d] for j < count and d < dim; zero for count <= j < width.
    // width must be a multiple of 8. Like from_half, it may ask the cache for the block that
    // follows.
    void (*transpose)(const float* src, int64_t row, int64_t count, int64_t dim, float* dst,
                      int64_t width);
    void (*transpose_half)(const uint16_t* src, int64_t row, int64_t count, int64_t dim, float* dst,
                           int64_t width);

    // Between IEEE half and float: nearest, ties to even.
    void (*from_half)(const uint16_t* src, int64_t n, float* dst);
    void (*to_half)(const float* src, int64_t n, uint16_t* dst);
};

void register_tile_scalar(TileKernels& table);
void register_tile_avx2(TileKernels& table);
void register_tile_avx512(TileKernels& table);
void register_tile_neon(TileKernels& table);

}  // namespace flashmoe
