// Stored weights from and to floats, bit for bit as the NumPy twins in src/flashmoe/quant do it.
#pragma once

#include <bit>
#include <cstdint>

#include "cpu/codec/matrix.h"
#include "flashmoe/pool.h"

namespace flashmoe {

struct CodecKernels {
    // to[i] = the float of the i-th 16-bit value at bytes.
    using Widen = void (*)(const uint8_t* bytes, int64_t n, float* to);
    Widen widen_bf16;
    Widen widen_f16;
    // The largest magnitude of n floats, as bits: NaN counts as more than infinity.
    uint32_t (*largest)(const float* w, int64_t n);
    // One row's part of a group: bytes points at the row's first unit of codes, tail at its scale.
    using EncodeGroup = void (*)(const float* w, int64_t group, uint8_t* bytes, uint8_t* tail);
    EncodeGroup encode_q8;
    EncodeGroup encode_q4;
    EncodeGroup encode_mxfp4;
    EncodeGroup encode_q2;
    EncodeGroup encode_q3;
    EncodeGroup encode_q4n;
    EncodeGroup encode_q5;

    EncodeGroup encode(Format format) const {
        switch (format) {
            case Format::q8:
                return encode_q8;
            case Format::q4:
                return encode_q4;
            case Format::q2:
                return encode_q2;
            case Format::q3:
                return encode_q3;
            case Format::q4n:
                return encode_q4n;
            case Format::q5:
                return encode_q5;
            default:
                return encode_mxfp4;
        }
    }
};

void register_codec_scalar(CodecKernels& table);
void register_codec_avx2(CodecKernels& table);
void register_codec_neon(CodecKernels& table);

inline uint16_t to_bf16(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t bits) {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

enum class SourceType { bf16, f16, f32 };

// Unencoded weights, row-major.
struct Source {
    SourceType type;
    const uint8_t* data;

    int64_t item_bytes() const { return type == SourceType::f32 ? 4 : 2; }
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
