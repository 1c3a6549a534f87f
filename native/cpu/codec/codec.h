// Stored weights from and to floats, bit for bit as the NumPy twins in src/flashmoe/quant do it.
#pragma once

#include <cstdint>

#include "cpu/codec/matrix.h"
#include "flashmoe/pool.h"

namespace flashmoe {

enum class SourceType { bf16, f16, f32 };

// Unencoded weights, row-major.
struct Source {
    SourceType type;
    const uint8_t* data;

    int64_t item_bytes() const { return type == SourceType::f32 ? 4 : 2; }
    float at(int64_t index) const;
    // to[i] = weight index + i.
    void load(int64_t index, int64_t n, float* to) const;
};

// The first weight (row * cols + column) that shape's format cannot hold, or -1: NaN, infinity, or
// a magnitude whose stored form would be infinite.
int64_t first_unencodable(Pool& pool, const MatrixView& shape, const Source& source);

// Writes shape.nbytes() bytes; shape.data is not used. All weights must be encodable.
void encode(Pool& pool, const MatrixView& shape, const Source& source, uint8_t* out);

// out[cols] = row of w.
void decode_row(const MatrixView& w, int64_t row, float* out);

// out[i] = row ids[i] of w, for i in [0, count); null ids: row i.
void decode_rows(Pool& pool, const MatrixView& w, const int32_t* ids, int64_t count, float* out);

}  // namespace flashmoe
