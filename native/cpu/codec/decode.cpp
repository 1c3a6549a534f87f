#include <algorithm>
#include <cstring>
#include <functional>

#include "cpu/codebook/codebook.h"
#include "cpu/codec/codec.h"
#include "cpu/mxfp4/fp4.h"
#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

float load_bf16(const uint8_t* bytes) {
    uint16_t bits;
    std::memcpy(&bits, bytes, 2);
    return from_bf16(bits);
}

void decode_bf16(const uint8_t* unit, int64_t cols, float* out) {
    for (int64_t c = 0; c < cols; ++c) out[c] = load_bf16(unit + c / 2 * 32 + c % 2 * 2);
}

// unit: the row's first unit of the group; tail: its scales.
void decode_q8(const uint8_t* unit, const uint8_t* tail, int64_t row, int64_t group, float* out) {
    float scale;
    std::memcpy(&scale, tail + 4 * row, 4);
    for (int64_t c = 0; c < group; ++c)
        out[c] = static_cast<float>(static_cast<int8_t>(unit[c / 4 * 32 + c % 4])) * scale;
}

void decode_q4(const uint8_t* unit, const uint8_t* tail, int64_t row, int64_t group, float* out) {
    const float scale = load_bf16(tail + 2 * row), bias = load_bf16(tail + 16 + 2 * row);
    for (int64_t c = 0; c < group; ++c) {
        const int shift = c % 8 < 4 ? 0 : 4;
        const int code = (unit[c / 8 * 32 + c % 4] >> shift) & 15;
        out[c] = static_cast<float>(code) * scale + bias;
    }
}

void decode_mxfp4(const uint8_t* unit, const uint8_t* tail, int64_t row, int64_t group,
                  float* out) {
    const float scale = e8m0(tail[row]);
    for (int64_t c = 0; c < group; ++c) {
        const int shift = c % 8 < 4 ? 0 : 4;
        const int code = unit[c / 8 * 32 + c % 4] >> shift & 15;
        const float magnitude = 0.5f * static_cast<float>(kFp4Halves[code & 7]) * scale;
        out[c] = code & 8 ? -magnitude : magnitude;
    }
}

template <int kBits>
void decode_codebook(const uint8_t* unit, const uint8_t* tail, int64_t row, int64_t group,
                     float* out) {
    const float scale = codebook_scale(tail[row]);
    for (int64_t c = 0; c < group; ++c) {
        const int code = codebook_code<kBits>(unit + c / 32 * kChunkBytes<kBits>, c % 32);
        out[c] = static_cast<float>(kLevels<kBits>[code]) * scale;
    }
}

auto group_decoder(Format format) {
    switch (format) {
        case Format::q8:
            return decode_q8;
        case Format::q4:
            return decode_q4;
        case Format::q2:
            return decode_codebook<2>;
        case Format::q3:
            return decode_codebook<3>;
        case Format::q4n:
            return decode_codebook<4>;
        case Format::q5:
            return decode_codebook<5>;
        default:
            return decode_mxfp4;
    }
}

}  // namespace

void decode_row(const MatrixView& w, int64_t row, float* out) {
    const int64_t lane = row % kBlockRows;
    if (is_block_format(w.format)) {
        const uint8_t* stored = w.block(row / kBlockRows) + lane * w.row_bytes(w.cols);
        return kernels().linear.blocks[block_index(w.format)].decode_row(stored, w.cols, out);
    }
    const uint8_t* bytes = w.block(row / kBlockRows) + 4 * lane;
    if (w.format == Format::bf16) return decode_bf16(bytes, w.cols, out);
    const auto decode = group_decoder(w.format);
    const int64_t groups = w.cols / w.group, group_bytes = w.block_bytes() / groups;
    const int64_t tail = group_bytes - kBlockRows * w.tail_bytes() - 4 * lane;
    for (int64_t g = 0; g < groups; ++g, bytes += group_bytes)
        decode(bytes, bytes + tail, lane, w.group, out + g * w.group);
}

void decode_rows(Pool& pool, const MatrixView& w, const int32_t* ids, int64_t count, float* out) {
    const auto body = [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) decode_row(w, ids ? ids[i] : i, out + i * w.cols);
    };
    pool.parallel_for(count, std::max<int64_t>(1, 16384 / w.cols), std::cref(body));
}

}  // namespace flashmoe
