#include "cpu/elementwise/elementwise.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "cpu/grain.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

constexpr int64_t kPiece = 256;  // channels of one task: its taps fit the stack and L1

// Input number i of the stream "state, then u".
const float* input(const CausalConv& call, int64_t i) {
    const int64_t history = call.width - 1;
    return i < history ? call.state + i * call.channels : call.u + (i - history) * call.channels;
}

// weight [n, width] -> taps [width, n].
void transpose_taps(const float* weight, int64_t n, int64_t width, float* taps) {
    for (int64_t c = 0; c < n; ++c)
        for (int64_t j = 0; j < width; ++j) taps[j * n + c] = weight[c * width + j];
}

// Rows move towards the front, oldest first, so none is overwritten before it is read.
void advance_state(const CausalConv& call, int64_t first, int64_t n) {
    for (int64_t i = 0; i < call.width - 1; ++i)
        std::copy_n(input(call, call.tokens + i) + first, n,
                    call.state + i * call.channels + first);
}

void convolve(const CausalConv& call, int64_t first, int64_t n) {
    float taps[kMaxConvWidth * kPiece];
    transpose_taps(call.weight + first * call.width, n, call.width, taps);
    for (int64_t t = 0; t < call.tokens; ++t) {
        const float* inputs[kMaxConvWidth];
        for (int64_t j = 0; j < call.width; ++j) inputs[j] = input(call, t + j) + first;
        kernels().elementwise.conv_silu(inputs, taps, call.width, n,
                                        call.out + t * call.channels + first);
    }
    advance_state(call, first, n);
}

}  // namespace

void sigmoid(const float* x, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i)
        out[i] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x[i]))));
}

bool all_finite(const float* x, int64_t n) {
    constexpr uint32_t kExponent = 0x7f800000;  // all ones: NaN or infinity
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; ++i)
        bad |= static_cast<uint32_t>((std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent);
    return bad == 0;
}

void sigmoid_gate(Pool& pool, const SigmoidGate& call) {
    const int64_t items = call.tokens * call.heads;
    pool.parallel_for(items, cheap_grain(call.dim), [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t token = item / call.heads, head = item % call.heads;
            kernels().elementwise.sigmoid_gate(
                call.x + item * call.dim,
                call.gate + token * call.token_stride + head * call.head_stride, call.dim);
        }
    });
}

void causal_conv_silu(Pool& pool, const CausalConv& call) {
    const int64_t pieces = (call.channels + kPiece - 1) / kPiece;
    pool.parallel_for(pieces, cheap_grain(kPiece * call.tokens),
                      [&](int64_t begin, int64_t end, int) {
                          for (int64_t piece = begin; piece < end; ++piece) {
                              const int64_t first = piece * kPiece;
                              convolve(call, first, std::min(kPiece, call.channels - first));
                          }
                      });
}

void add_bias(Pool& pool, float* x, const float* bias, int64_t rows, int64_t n) {
    pool.parallel_for(rows, cheap_grain(n), [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row)
            for (int64_t i = 0; i < n; ++i) x[row * n + i] += bias[i];
    });
}

}  // namespace flashmoe
