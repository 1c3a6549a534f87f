// Gates and the causal depthwise convolution.
#pragma once

#include <cstdint>

namespace flashmoe {

class Pool;

constexpr int64_t kMaxConvWidth = 8;

struct ElementwiseKernels {
    // x *= sigmoid(gate).
    void (*sigmoid_gate)(float* x, const float* gate, int64_t n);
    // out[c] = silu(sum_j inputs[j][c] * taps[j * n + c]) for c < n, j < width in ascending order.
    void (*conv_silu)(const float* const* inputs, const float* taps, int64_t width, int64_t n,
                      float* out);
};

void register_elementwise_scalar(ElementwiseKernels& table);
void register_elementwise_avx2(ElementwiseKernels& table);
void register_elementwise_avx512(ElementwiseKernels& table);
void register_elementwise_neon(ElementwiseKernels& table);

// out[i] = 1 / (1 + exp(-x[i])); out may be x. For a number per token: no threads, no table.
void sigmoid(const float* x, int64_t n, float* out);

// Whether no x[i] is NaN or infinite. No threads.
bool all_finite(const float* x, int64_t n);

struct SigmoidGate {
    float* x;           // [tokens, heads, dim], in place
    const float* gate;  // element (t, h, d) at gate[t * token_stride + h * head_stride + d]
    int64_t token_stride, head_stride;
    int64_t tokens, heads, dim;
};

void sigmoid_gate(Pool& pool, const SigmoidGate& call);

struct CausalConv {
    const float* u;       // [tokens, channels]
    const float* weight;  // [channels, width]; the last tap multiplies the newest input
    float* state;         // [width - 1, channels]: the inputs before u, oldest first; updated
    float* out;           // [tokens, channels]; not u
    int64_t tokens, channels, width;  // 2 <= width <= kMaxConvWidth
};

void causal_conv_silu(Pool& pool, const CausalConv& call);

// x[r] += bias for each of the rows of x [rows, n].
void add_bias(Pool& pool, float* x, const float* bias, int64_t rows, int64_t n);

}  // namespace flashmoe
