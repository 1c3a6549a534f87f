#include "cpu/linear/linear.h"
#include "cpu/mxfp4/fp4.h"
#include "cpu/mxfp4/mxfp4.h"

namespace flashmoe {
namespace {

// Twice the dot of one row's 4-bit floats with one group of activations.
int32_t group_dot_mxfp4(const uint8_t* unit, const int8_t* x) {
    int32_t dot = 0;
    for (int64_t c = 0; c < 32; c += 8, unit += 32)
        for (int64_t j = 0; j < 4; ++j)
            dot += kFp4Halves[unit[j] & 15] * x[c + j] + kFp4Halves[unit[j] >> 4] * x[c + 4 + j];
    return dot;
}

void dot_mxfp4(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
               float* y) {
    const int64_t groups = rows.cols / group, code_bytes = group * kBlockRows / 2;
    for (int64_t i = 0; i < count; ++i, y += kBlockRows) {
        const int64_t row = rows.at(first + i);
        const int8_t* codes = rows.codes + row * rows.cols;
        const float* scales = rows.scales + row * groups;
        for (int64_t r = 0; r < kBlockRows; ++r) {
            const uint8_t* at = bytes;
            y[r] = 0;
            for (int64_t g = 0; g < groups; ++g, at += code_bytes + kBlockRows) {
                const int32_t dot = group_dot_mxfp4(at + 4 * r, codes + g * group);
                y[r] += e8m0(at[code_bytes + r]) * (0.5f * scales[g] * static_cast<float>(dot));
            }
        }
    }
}

}  // namespace

void register_mxfp4_scalar(LinearKernels& table) { table.dot_mxfp4 = dot_mxfp4; }

}  // namespace flashmoe
