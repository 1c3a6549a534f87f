#include "cpu/delta/delta.h"
#include "cpu/simd/exp_avx512.h"
#include "cpu/simd/vector_avx512.h"

namespace flashmoe {
namespace {

using avx512::kLanes;
using avx512::load;
using avx512::store;

// V vectors of columns, `mask` lanes of each; the columns of the state do not interact.
template <int V>
void step_columns(const DeltaToken& token, int64_t key_dim, int64_t value_dim, int64_t first,
                  float* state, float* out, __mmask16 mask) {
    const __m512 decay = _mm512_set1_ps(token.decay), beta = _mm512_set1_ps(token.beta);
    float* s = state + first;
    __m512 seen[V], sum[V];
    for (int v = 0; v < V; ++v) seen[v] = sum[v] = _mm512_setzero_ps();
    for (int64_t i = 0; i < key_dim; ++i) {
        const __m512 k = _mm512_set1_ps(token.k[i]);
        for (int v = 0; v < V; ++v)
            seen[v] = _mm512_fmadd_ps(k, load(s + i * value_dim + v * kLanes, mask), seen[v]);
    }
    for (int v = 0; v < V; ++v) {  // the correction takes the place of what was seen
        const __m512 value = load(token.v + first + v * kLanes, mask);
        seen[v] = _mm512_mul_ps(beta, _mm512_fnmadd_ps(decay, seen[v], value));
    }
    for (int64_t i = 0; i < key_dim; ++i) {
        const __m512 k = _mm512_set1_ps(token.k[i]), q = _mm512_set1_ps(token.q[i]);
        for (int v = 0; v < V; ++v) {
            float* at = s + i * value_dim + v * kLanes;
            const __m512 updated =
                _mm512_fmadd_ps(k, seen[v], _mm512_mul_ps(decay, load(at, mask)));
            store(at, updated, mask);
            sum[v] = _mm512_fmadd_ps(q, updated, sum[v]);
        }
    }
    for (int v = 0; v < V; ++v) store(out + first + v * kLanes, sum[v], mask);
}

void step(const DeltaToken& token, int64_t key_dim, int64_t value_dim, float* state, float* out) {
    constexpr int kVectors = 8;  // sums of both passes fit the registers, and hide FMA latency
    int64_t first = 0;
    for (; first + kVectors * kLanes <= value_dim; first += kVectors * kLanes)
        step_columns<kVectors>(token, key_dim, value_dim, first, state, out, avx512::kAll);
    for (; first + kLanes <= value_dim; first += kLanes)
        step_columns<1>(token, key_dim, value_dim, first, state, out, avx512::kAll);
    if (first < value_dim)
        step_columns<1>(token, key_dim, value_dim, first, state, out,
                        avx512::first_lanes(value_dim - first));
}

void exponentials(float* x, int64_t n) {
    avx512::for_vectors(
        n, [&](int64_t i, __mmask16 mask) { store(x + i, avx512::exp(load(x + i, mask)), mask); });
}

}  // namespace

void register_delta_avx512(DeltaKernels& table) {
    register_tile_avx512(table.tile);
    table.step = step;
    table.exp = exponentials;
}

}  // namespace flashmoe
