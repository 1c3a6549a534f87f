#include "cpu/codebook/codebook.h"
#include "cpu/linear/linear.h"

namespace flashmoe {
namespace {

template <int kBits>
int32_t group_dot(const uint8_t* unit, const int8_t* x, int64_t group) {
    int32_t dot = 0;
    for (int64_t chunk = 0; chunk < group; chunk += 32, unit += kChunkBytes<kBits>)
        for (int64_t c = 0; c < 32; ++c)
            dot += kLevels<kBits>[codebook_code<kBits>(unit, c)] * x[chunk + c];
    return dot;
}

template <int kBits>
void dot(const uint8_t* bytes, int64_t group, const Rows& rows, int64_t first, int64_t count,
         float* y) {
    const int64_t groups = rows.cols / group, code_bytes = group / 32 * kChunkBytes<kBits>;
    for (int64_t i = 0; i < count; ++i, y += kBlockRows) {
        const int64_t row = rows.at(first + i);
        const int8_t* codes = rows.codes + row * rows.cols;
        const float* scales = rows.scales + row * groups;
        for (int64_t r = 0; r < kBlockRows; ++r) {
            const uint8_t* at = bytes;
            y[r] = 0;
            for (int64_t g = 0; g < groups; ++g, at += code_bytes + kBlockRows) {
                const int32_t sum = group_dot<kBits>(at + 4 * r, codes + g * group, group);
                y[r] += codebook_scale(at[code_bytes + r]) * (scales[g] * static_cast<float>(sum));
            }
        }
    }
}

}  // namespace

void register_codebook_scalar(LinearKernels& table) {
    table.dot_q2 = dot<2>;
    table.dot_q3 = dot<3>;
    table.dot_q4n = dot<4>;
    table.dot_q5 = dot<5>;
}

}  // namespace flashmoe
